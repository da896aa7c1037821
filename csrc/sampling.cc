#include "sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "float_environment.h"

namespace {

constexpr size_t kBlock = 512;   // scores whose weights stay in the L1 cache
constexpr size_t kScanned = 64;  // scores scanned together

// Whole numbers below 2**53, so sums are exact in any order.
using Sums = std::array<double, kScoreBuckets>;

// Calls found(i) for every i of 0 .. count - 1 with is_wanted(i); fast if they are few.
template <class Wanted, class Found>
void for_few(size_t count, Wanted is_wanted, Found found) {
  for (size_t start = 0; start < count; start += kScanned) {
    const size_t end = std::min(count, start + kScanned);
    int any = 0;
    for (size_t i = start; i < end; ++i) any |= is_wanted(i) ? 1 : 0;
    if (!any) continue;
    for (size_t i = start; i < end; ++i) {
      if (is_wanted(i)) found(i);
    }
  }
}

struct Candidate {
  float score;
  uint32_t index;
};

bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// Memory that is reused between calls, one instance per thread.
struct Scratch {
  std::vector<uint16_t> buckets;
  std::vector<float> scores;  // of the k best
  std::vector<uint32_t> ids;
  std::vector<Candidate> candidates;
  std::vector<float> weights;
};

// Scores as if sorted by (-score, index): weights are summed per bucket of equal width in score, and only a bucket in
// which a threshold falls is sorted.
class Ranking {
 public:
  Ranking(const Kernels& kernels, const float* scores, size_t count, float best, double min_weight, Scratch& scratch)
      : kernels_(kernels), scores_(scores), count_(count), best_(best), scratch_(scratch) {
    scratch.buckets.resize(count);
    kernels.find_buckets(scores, count, best, scratch.buckets.data());
    // Four tables: adjacent scores often fall in the same bucket, and their additions would depend on each other.
    std::array<Sums, 4> sums;
    for (Sums& part : sums) part.fill(0.0);
    std::array<double, 4> large{};
    float weights[kBlock];
    for (size_t start = 0; start < count; start += kBlock) {
      const size_t n = std::min(count - start, kBlock);
      kernels.weigh(scores + start, n, best, weights);
      const uint16_t* buckets = scratch.buckets.data() + start;
      for (size_t i = 0; i < n; ++i) sums[i % 4][buckets[i]] += static_cast<double>(weights[i]);
      if (min_weight == 0.0) continue;
      for (size_t i = 0; i < n; ++i) large[i % 4] += weights[i] >= min_weight ? static_cast<double>(weights[i]) : 0.0;
    }
    large_weight_ = (large[0] + large[1]) + (large[2] + large[3]);
    double total = 0.0;
    for (size_t b = 0; b < kScoreBuckets; ++b) {
      total += (sums[0][b] + sums[1][b]) + (sums[2][b] + sums[3][b]);
      weight_up_to_[b] = total;
    }
  }

  double total() const { return weight_up_to_[kScoreBuckets - 1]; }

  // The sum of the weights of at least min_weight.
  double large_weight() const { return large_weight_; }

  struct Place {
    uint32_t index;
    double weight_up_to;
  };

  // The first in rank whose accumulated weight is above `weight`, which is below the total; and that weight.
  Place at(double weight) {
    const auto found = std::upper_bound(weight_up_to_.begin(), weight_up_to_.end(), weight);
    const size_t bucket = static_cast<size_t>(found - weight_up_to_.begin());
    if (bucket != gathered_) gather(bucket);
    double sum = bucket == 0 ? 0.0 : weight_up_to_[bucket - 1];
    size_t rank = 0;
    while ((sum += static_cast<double>(scratch_.weights[rank])) <= weight) ++rank;
    return {scratch_.candidates[rank].index, sum};
  }

 private:
  void gather(size_t bucket) {
    std::vector<Candidate>& candidates = scratch_.candidates;
    candidates.clear();
    const uint16_t *buckets = scratch_.buckets.data(), wanted = static_cast<uint16_t>(bucket);
    for_few(
        count_, [=](size_t i) { return buckets[i] == wanted; },
        [&](size_t i) { candidates.push_back({scores_[i], static_cast<uint32_t>(i)}); });
    // Equal scores are already in order.
    if (!std::is_sorted(candidates.begin(), candidates.end(), ranks_before)) {
      std::sort(candidates.begin(), candidates.end(), ranks_before);
    }
    std::vector<float>& weights = scratch_.weights;
    weights.clear();
    for (const Candidate& candidate : candidates) weights.push_back(candidate.score);
    kernels_.weigh(weights.data(), weights.size(), best_, weights.data());
    gathered_ = bucket;
  }

  const Kernels& kernels_;
  const float* scores_;
  const size_t count_;
  const float best_;
  Scratch& scratch_;
  Sums weight_up_to_;
  double large_weight_;
  size_t gathered_ = kScoreBuckets;  // the bucket whose sorted members and weights scratch_.candidates holds
};

// Keeps the k best scores and all that equal the k-th in scratch.scores, their ids, ascending, in scratch.ids.
void shortlist(const Kernels& kernels, const float* scores, size_t count, float best, size_t k, Scratch& scratch) {
  scratch.buckets.resize(count);
  const uint16_t* buckets = scratch.buckets.data();
  kernels.find_buckets(scores, count, best, scratch.buckets.data());
  std::array<std::array<uint32_t, kScoreBuckets>, 4> counts;
  for (auto& part : counts) part.fill(0);
  for (size_t i = 0; i < count; ++i) ++counts[i % 4][buckets[i]];
  size_t bucket = 0, up_to = 0;
  while ((up_to += counts[0][bucket] + counts[1][bucket] + counts[2][bucket] + counts[3][bucket]) < k) ++bucket;
  std::vector<float>& kept = scratch.scores;
  kept.clear();
  for_few(count, [=](size_t i) { return buckets[i] == bucket; }, [&](size_t i) { kept.push_back(scores[i]); });
  const auto kth = kept.begin() + static_cast<std::ptrdiff_t>(up_to - k);
  std::nth_element(kept.begin(), kth, kept.end());
  const float least = *kth;
  kept.clear(), scratch.ids.clear();
  for_few(
      count, [=](size_t i) { return scores[i] >= least; },
      [&](size_t i) { kept.push_back(scores[i]), scratch.ids.push_back(static_cast<uint32_t>(i)); });
}

}  // namespace

uint64_t uniform53(uint64_t seed, uint64_t choice, uint64_t position) {
  using Wide = unsigned __int128;
  uint64_t k0 = seed, k1 = choice;
  uint64_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const Wide left = static_cast<Wide>(0xD2E7470EE14C6C93u) * c0, right = static_cast<Wide>(0xCA5A826395121157u) * c2;
    c0 = static_cast<uint64_t>(right >> 64) ^ c1 ^ k0, c1 = static_cast<uint64_t>(right);
    c2 = static_cast<uint64_t>(left >> 64) ^ c3 ^ k1, c3 = static_cast<uint64_t>(left);
    k0 += 0x9E3779B97F4A7C15u, k1 += 0xBB67AE8584CAA73Bu;
  }
  return c0 >> 11;
}

int64_t draw(const Kernels& kernels, float* scores, size_t count, const Warpers& warpers, uint64_t uniform) {
  static thread_local Scratch kept_scratch;
  Scratch& scratch = kept_scratch;
  const FloatEnvironment environment;
  const float best = kernels.divide(scores, count, warpers.temperature);
  if (std::isinf(best)) return -1;
  const bool is_short = warpers.top_k > 0 && static_cast<uint64_t>(warpers.top_k) < count;
  const float* ranked = scores;
  if (is_short) {
    shortlist(kernels, scores, count, best, static_cast<size_t>(warpers.top_k), scratch);
    ranked = scratch.scores.data(), count = scratch.scores.size();
  }
  const double min_weight = warpers.min_p * static_cast<double>(uint64_t{1} << kWeightShift);
  Ranking ranking(kernels, ranked, count, best, min_weight, scratch);
  // Both top_p and min_p keep a beginning of the ranking, so the shorter one wins.
  double kept = ranking.total();
  if (warpers.top_p < 1.0) kept = ranking.at(std::max(0.0, std::ceil(warpers.top_p * kept) - 1.0)).weight_up_to;
  if (warpers.min_p > 0.0) kept = std::min(kept, ranking.large_weight());
  const auto whole = static_cast<unsigned __int128>(static_cast<uint64_t>(kept));
  const uint32_t index = ranking.at(static_cast<double>(static_cast<uint64_t>(uniform * whole >> 53))).index;
  return is_short ? scratch.ids[index] : index;
}
