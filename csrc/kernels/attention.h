// Keys, values and attention: docs/numerics.md, sections 6 to 8, for one head of keys and values and one sequence.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/unroll.h"

static inline void rotate(const float* x, const float* cos, const float* sin, int D, float* out) {
  const int half = D / 2;
  for (int i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    out[i] = first * cos[i] - second * sin[i];
    out[i + half] = second * cos[i] + first * sin[i];
  }
}

// 32 numbers -> 32 codes and their binary16 scale; docs/numerics.md, section 7.
template <class V>
static uint16_t quantize_kv(const float* x, int8_t* codes) {
  const int32_t bits = largest_magnitude_bits<V>(x, kHeadBlock);
  std::memset(codes, 0, kHeadBlock);
  if (bits >= kInfinityBits) return 0x7e00;
  const float wanted = float_from_bits(static_cast<uint32_t>(bits)) / 127.0f;
  const uint16_t scale = half_from_float(wanted < 65504.0f ? wanted : 65504.0f);
  if (scale == 0) return 0;
  const float factor = 1.0f / float_from_half(scale);
  for (int k = 0; k < kHeadBlock; k += kLanes) {
    // Clamped before it becomes whole, where nothing can overflow: -127 and 127 are whole, so that changes nothing.
    const typename V::F scaled = V::mul(V::load(x + k), V::set1(factor));
    V::store_as_int8(codes + k, V::to_int(V::min(V::set1(127.0f), V::max(V::set1(-127.0f), scaled))));
  }
  return scale;
}

template <class V>
static void file_keys_and_values(const AttentionJob& job, float* head) {
  const int D = job.head_dim, E = job.cache.blocks;
  int8_t codes[kHeadBlock];
  for (int t = 0; t < job.tokens; ++t) {
    const int position = job.first_position + t, lane = position % kLanes;
    const HeadBlock block = job.cache.block(position / kLanes);
    const float* row = job.qkv + t * job.qkv_stride;
    for (int k = D; k < E * kHeadBlock; ++k) head[k] = 0.0f;
    rotate(row + job.key_offset, job.cos + static_cast<size_t>(t) * (D / 2), job.sin + static_cast<size_t>(t) * (D / 2),
           D, head);
    for (int j = 0; j < E; ++j) {
      block.key_scales(E)[j * kLanes + lane] = quantize_kv<V>(head + j * kHeadBlock, codes);
      for (int i = 0; i < kHeadBlock; ++i) {
        block.keys()[((j * 8 + i / 4) * kLanes + lane) * 4 + i % 4] = static_cast<uint8_t>(codes[i] ^ 0x80);
      }
    }
    std::memcpy(head, row + job.value_offset, D * sizeof(float));
    for (int j = 0; j < E; ++j) {
      block.value_scales(E)[j * kLanes + lane] = quantize_kv<V>(head + j * kHeadBlock, codes);
      std::memcpy(block.values(E) + lane * E * kHeadBlock + j * kHeadBlock, codes, kHeadBlock);
    }
  }
}

// R queries of one head of keys and values, numbered by token and then by head of queries.
template <class V, int R>
static void attend_tile(const AttentionJob& job, int first_query, float* scratch) {
  using F = typename V::F;
  const int D = job.head_dim, E = job.cache.blocks, padded = E * kHeadBlock;
  float* head = scratch;                                           // (padded)
  float* totals = head + padded;                                   // (R, padded)
  int8_t* codes = reinterpret_cast<int8_t*>(totals + R * padded);  // (padded / 4, R, 4)
  float* query_scales = totals + R * padded + R * padded / 4;      // (E, R)
  int32_t* sums = reinterpret_cast<int32_t*>(query_scales + R * E);
  float* weights = query_scales + 2 * R * E;  // (E, R, 16)
  int position[R];
  float running[R], norm[R];
  for (int r = 0; r < R; ++r) {
    const int token = (first_query + r) / job.queries, query = (first_query + r) % job.queries;
    position[r] = job.first_position + token;
    running[r] = float_from_bits(0xff800000);
    norm[r] = 0.0f;
    rotate(job.qkv + token * job.qkv_stride + job.query_offset + query * D,
           job.cos + static_cast<size_t>(token) * (D / 2), job.sin + static_cast<size_t>(token) * (D / 2), D, head);
    for (int k = 0; k < D; ++k) head[k] *= job.query_scale;
    for (int k = D; k < padded; ++k) head[k] = 0.0f;
    for (int j = 0; j < E; ++j) {
      quantize_group<V>(head + j * kHeadBlock, kHeadBlock, codes + (j * 8 * R + r) * 4, 4 * R, query_scales + j * R + r,
                        sums + j * R + r);
    }
  }
  std::memset(totals, 0, R * padded * sizeof(float));

  const int last_block = position[R - 1] / kLanes;
  for (int b = 0; b <= last_block; ++b) {
    const HeadBlock block = job.cache.block(b);
    if (b < last_block) {
      const uint8_t* next = job.cache.block(b + 1).data;
      for (size_t i = 0; i < HeadBlock::bytes(E); i += 64) __builtin_prefetch(next + i);
    }
    F score[R];
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { score[r] = V::zero(); });
    for (int j = 0; j < E; ++j) {
      typename V::I sum[R];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::set1_int(-V::kOffset8 * sums[j * R + r]); });
      for (int i = j * 8; i < j * 8 + 8; ++i) {
        const typename V::Weights8 keys = V::prepare8(V::load_bytes(block.keys() + i * 64));
        unroll<R>([&](auto r)
                      MINICPM_INLINE_LAMBDA { sum[r] = V::dot8(sum[r], keys, V::repeat4(codes + (i * R + r) * 4)); });
      }
      const F key_scales = V::load_half(block.key_scales(E) + j * kLanes);
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
        const F part = V::mul(V::mul(V::to_float(sum[r]), key_scales), V::set1(query_scales[j * R + r]));
        score[r] = V::add(score[r], part);
      });
    }
    float alpha[R];
    for (int r = 0; r < R; ++r) {
      // Tokens behind the query count as -infinity, and exactly 0 below: what lies there may be anything, even NaN.
      const int count = larger(0, smaller(kLanes, position[r] - b * kLanes + 1));
      const F seen = V::keep_first(score[r], count, V::set1(float_from_bits(0xff800000)));
      float lane[kLanes];
      V::store(lane, seen);
      float largest = running[r];
      for (int i = 0; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
      const F p = V::keep_first(exponential<V>(V::sub(seen, V::set1(largest))), count, V::zero());
      V::store(lane, exponential<V>(V::set1(running[r] - largest)));
      alpha[r] = lane[0];
      running[r] = largest;
      norm[r] = norm[r] * alpha[r] + fold<V>(p);
      for (int j = 0; j < E; ++j) {
        const F value_scales = V::load_half(block.value_scales(E) + j * kLanes);
        V::store(weights + (j * R + r) * kLanes, V::keep_first(V::mul(p, value_scales), count, V::zero()));
      }
    }
    const int tokens = smaller(kLanes, position[R - 1] - b * kLanes + 1);
    for (int e = 0; e < padded; e += kLanes) {
      const float* weight = weights + e / kHeadBlock * R * kLanes;
      const int8_t* values = block.values(E) + e;
      F sum[R];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::zero(); });
      for (int t = 0; t < tokens; ++t) {
        const F v = V::load_int8(values + t * padded);
        unroll<R>([&](auto r)
                      MINICPM_INLINE_LAMBDA { sum[r] = V::add(sum[r], V::mul(V::set1(weight[r * kLanes + t]), v)); });
      }
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
        float* total = totals + r * padded + e;
        V::store(total, V::add(V::mul(V::load(total), V::set1(alpha[r])), sum[r]));
      });
    }
  }
  for (int r = 0; r < R; ++r) {
    const int token = (first_query + r) / job.queries, query = (first_query + r) % job.queries;
    float* out = job.out + token * job.out_stride + query * D;
    for (int k = 0; k < D; ++k) out[k] = totals[r * padded + k] / norm[r];
  }
}

template <class V>
static void attend(const AttentionJob& job) {
  static_assert(V::kQueries <= static_cast<int>(kMostQueries));
  file_keys_and_values<V>(job, job.scratch);
  const int queries = job.tokens * job.queries;
  int q = 0;
  for (; q + V::kQueries <= queries; q += V::kQueries) attend_tile<V, V::kQueries>(job, q, job.scratch);
  for (; q + 2 <= queries; q += 2) attend_tile<V, 2>(job, q, job.scratch);
  if (q < queries) attend_tile<V, 1>(job, q, job.scratch);
}
