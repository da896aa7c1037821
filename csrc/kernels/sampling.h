// The per-score work of drawing a token (docs/chat-and-sampling.md, "Weights"); the sums are in
// csrc/sampling.cc.
#pragma once

#include <cstring>
#include <limits>

#include "kernels/exp.h"
#include "kernels/kernels.h"

template <class V>
static float divide(float* scores, size_t count, float temperature) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const typename V::F lowest = V::set1(kLowest);
  typename V::F best = lowest;
  const typename V::F divisor = V::set1(temperature);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const typename V::F score = V::max(V::div(V::load(scores + i), divisor), lowest);  // NaN becomes the lowest
    V::store(scores + i, score);
    best = V::max(score, best);
  }
  float lanes[kLanes];
  V::store(lanes, best);
  float largest = lanes[0];
  for (const float lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < count; ++i) {
    const float score = scores[i] / temperature;
    scores[i] = score > kLowest ? score : kLowest;
    largest = scores[i] > largest ? scores[i] : largest;
  }
  return largest;
}

template <class V>
static MINICPM_INLINE typename V::F weights_of(typename V::F scores, typename V::F best) {
  using F = typename V::F;
  const F x = V::max(V::sub(scores, best), V::set1(-30.0f));
  typename V::I whole;
  const F y = exp_series<V>(x, &whole);
  const F weight = V::mul(y, V::power_of_two(V::add_int(whole, V::set1_int(kWeightShift))));
  // Rounded down: numbers beyond 2**23 are integers, and their difference from 2**23 is exact.
  const F small = V::min(weight, V::set1(8388608.0f));
  const F nearest = V::to_float(V::to_int(small));
  const F is_below = V::zero_below(V::set1(1.0f), V::sub(small, nearest), 0.0f);
  return V::add(V::add(V::sub(nearest, V::set1(1.0f)), is_below), V::sub(weight, small));
}

template <class V>
static void weigh(const float* scores, size_t count, float best, float* weights) {
  const typename V::F highest = V::set1(best);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) V::store(weights + i, weights_of<V>(V::load(scores + i), highest));
  if (i == count) return;
  float tail[kLanes] = {};
  std::memcpy(tail, scores + i, (count - i) * sizeof(float));
  V::store(tail, weights_of<V>(V::load(tail), highest));
  std::memcpy(weights + i, tail, (count - i) * sizeof(float));
}

// A plain loop: the compiler vectorises the narrowing.
template <class V>
static void find_buckets(const float* scores, size_t count, float best, uint16_t* buckets) {
  constexpr float kLast = kScoreBuckets - 1;
  for (size_t i = 0; i < count; ++i) {
    const float depth = (best - scores[i]) * kBucketsPerNat;
    buckets[i] = static_cast<uint16_t>(static_cast<int32_t>(depth < kLast ? depth : kLast));
  }
}
