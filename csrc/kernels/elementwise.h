// Operations between the linear layers: docs/numerics.md, sections 1, 4 and 5. Plain loops are vectorised by the
// compiler; they contain no sums, so vectorisation changes no order of additions.
#pragma once

#include <cmath>
#include <cstring>

#include "float16.h"
#include "kernels/exp.h"
#include "kernels/kernels.h"

template <class V>
static MINICPM_INLINE typename V::F exponential(typename V::F x) {
  using F = typename V::F;
  const F bounded = V::min(V::set1(88.0f), V::max(V::set1(-87.0f), x));  // NaN is kept: second argument
  typename V::I whole;
  const F y = exp_series<V>(bounded, &whole);
  return V::zero_below(V::mul(y, V::power_of_two(whole)), x, -87.0f);
}

template <class V>
static void rms_norm(const float* x, const float* weight, int K, float eps, float scale, float* out) {
  typename V::F lanes = V::zero();
  for (int k = 0; k < K; k += kLanes) {
    const typename V::F part = V::load(x + k);
    lanes = V::add(lanes, V::mul(part, part));
  }
  const float r = 1.0f / std::sqrt(V::fold(lanes) / static_cast<float>(K) + eps);
  if (scale == 1.0f) {
    for (int k = 0; k < K; ++k) out[k] = (x[k] * r) * weight[k];
  } else {
    for (int k = 0; k < K; ++k) out[k] = ((x[k] * r) * weight[k]) * scale;
  }
}

template <class V>
static void silu_multiply(const float* gate, const float* up, int count, float* out) {
  const auto sixteen = [](const float* g, const float* u, float* y) {
    const typename V::F x = V::load(g);
    const typename V::F negative = V::sub(V::zero(), x);
    const typename V::F silu = V::div(x, V::add(V::set1(1.0f), exponential<V>(negative)));
    V::store(y, V::mul(silu, V::load(u)));
  };
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) sixteen(gate + i, up + i, out + i);
  if (i == count) return;
  float tail[3][kLanes] = {};
  for (int j = 0; i + j < count; ++j) tail[0][j] = gate[i + j], tail[1][j] = up[i + j];
  sixteen(tail[0], tail[1], tail[2]);
  for (int j = 0; i + j < count; ++j) out[i + j] = tail[2][j];
}

// The largest magnitude of `count` floats (a multiple of 16) as bits, which order like the magnitudes: infinity above
// every number and NaN above infinity.
template <class V>
static int32_t largest_magnitude_bits(const float* x, int count) {
  typename V::I largest = V::zero_int();
  for (int k = 0; k < count; k += kLanes) largest = V::max_int(largest, V::magnitude_bits(V::load(x + k)));
  return V::largest_int(largest);
}

constexpr int32_t kInfinityBits = 0x7f800000;

constexpr float kSmallestActivation = 7.888609052210118e-31f;  // 2**-100

// The scale of a group whose largest magnitude has these bits, and the factor that turns its numbers into codes:
// 0 if all codes are 0. docs/numerics.md, section 3.
static inline float scale_of_group(int32_t bits, float* factor) {
  const float m = float_from_bits(static_cast<uint32_t>(bits));
  *factor = 0.0f;
  if (bits >= kInfinityBits) return float_from_bits(0x7fc00000);
  if (m < kSmallestActivation) return 0.0f;
  *factor = 127.0f / m;
  return m / 127.0f;
}

// The codes of one group in groups of 4, `step` bytes apart; their scale and their sum.
template <class V>
static void quantize_group(const float* x, int G, int8_t* codes, size_t step, float* scale, int32_t* sum) {
  float factor;
  *scale = scale_of_group(largest_magnitude_bits<V>(x, G), &factor);
  if (factor == 0.0f) {
    for (int k = 0; k < G; k += 4) std::memset(codes + k / 4 * step, 0, 4);
    *sum = 0;
    return;
  }
  typename V::I total = V::zero_int();
  for (int k = 0; k < G; k += kLanes) {
    const typename V::I whole = V::to_int(V::mul(V::load(x + k), V::set1(factor)));
    total = V::add_int(total, whole);
    int8_t bytes[kLanes];
    V::store_as_int8(bytes, whole);
    for (int i = 0; i < kLanes; i += 4) std::memcpy(codes + (k + i) / 4 * step, bytes + i, 4);
  }
  *sum = V::sum_int(total);
}

template <class V>
static void quantize(const float* x, int first, int last, int G, const Activations& to, int token) {
  const int tile = token / to.width, lane = token % to.width, w = to.tile_width(tile);
  int8_t* codes = to.tile_codes(tile) + 4 * lane;
  float* scales = to.tile_scales(tile) + lane;
  int32_t* starts = to.tile_starts(tile) + lane;
  for (int g = first / G; g < ceil_div(last, G); ++g) {
    int32_t sum;
    quantize_group<V>(x + g * G, G, codes + static_cast<size_t>(g) * G * w, static_cast<size_t>(4) * w,
                      scales + static_cast<size_t>(g) * w, &sum);
    starts[static_cast<size_t>(g) * w] = -kNibbleOffset * sum;
  }
}
