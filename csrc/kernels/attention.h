// Keys, values and attention: docs/numerics.md, sections 6 to 8, for one head of keys and values and one sequence.
#pragma once

#include <optional>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/unroll.h"

// The job reduced to its i-th head.
static inline AttentionJob head_of(AttentionJob job, int i) {
  job.cache.first += job.cache.head_bytes * static_cast<size_t>(i);
  job.query_offset += i * job.queries * job.head_dim;
  job.key_offset += i * job.head_dim;
  job.value_offset += i * job.head_dim;
  job.out += i * job.queries * job.head_dim;
  job.scratch += attention_scratch_floats(job.head_dim) * static_cast<size_t>(i);
  job.heads = 1;
  return job;
}

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
    // Clamped before the conversion, which then cannot overflow; the bounds are integers, so no result changes.
    const typename V::F scaled = V::mul(V::load(x + k), V::set1(factor));
    V::store_as_int8(codes + k, V::to_int(V::min(V::set1(127.0f), V::max(V::set1(-127.0f), scaled))));
  }
  return scale;
}

template <class V>
static void file_head(const AttentionJob& job) {
  const int D = job.head_dim, E = job.cache.blocks;
  float* head = job.scratch;
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
      for (int i = 0; i < kHeadBlock; i += 4) {
        uint32_t four;
        std::memcpy(&four, codes + i, sizeof four);
        four ^= 0x80808080u;
        std::memcpy(block.keys() + ((j * 8 + i / 4) * kLanes + lane) * 4, &four, sizeof four);
      }
    }
    std::memcpy(head, row + job.value_offset, D * sizeof(float));
    for (int j = 0; j < E; ++j) {
      block.value_scales(E)[j * kLanes + lane] = quantize_kv<V>(head + j * kHeadBlock, codes);
      int8_t* values = block.values(E) + (lane / 4 * E + j) * kHeadBlock * 4 + lane % 4;
      for (int i = 0; i < kHeadBlock; ++i) values[4 * i] = codes[i];
    }
  }
}

static inline void file_head_as_bfloat16(const AttentionJob& job) {
  const int D = job.head_dim, padded = round_up(D, kLanes);
  for (int t = 0; t < job.tokens; ++t) {
    const int position = job.first_position + t, lane = position % kLanes;
    const Bfloat16Block block{job.cache.data(position / kLanes)};
    const float* row = job.qkv + t * job.qkv_stride;
    const size_t half = static_cast<size_t>(t) * (D / 2);
    rotate(row + job.key_offset, job.cos + half, job.sin + half, D, job.scratch);
    for (int k = 0; k < D; ++k) block.keys()[k * kLanes + lane] = bfloat16_from_float(job.scratch[k]);
    uint16_t* values = block.values(D) + static_cast<size_t>(lane) * padded;
    for (int k = 0; k < padded; ++k) values[k] = k < D ? bfloat16_from_float(row[job.value_offset + k]) : uint16_t{0};
  }
}

template <class V>
static void file_keys_and_values(const AttentionJob& job) {
  for (int i = 0; i < job.heads; ++i) {
    const AttentionJob one = head_of(job, i);
    one.cache.kind == CacheKind::kInt8 ? file_head<V>(one) : file_head_as_bfloat16(one);
  }
}

// The layout of a tile of queries in the scratch memory. A template, because all code in headers
// must differ by instruction set or be static.
template <class V>
class Scratch {
 public:
  explicit Scratch(float* memory) : next_(memory) {}
  float* floats(int count) { return std::exchange(next_, next_ + round_up(count, kLanes)); }
  int32_t* words(int count) { return reinterpret_cast<int32_t*>(floats(count)); }
  int8_t* codes(int count) { return reinterpret_cast<int8_t*>(floats(count / 4)); }

 private:
  float* next_;
};

constexpr float kMinusInfinity = -__builtin_inff();

static inline int position_of(const AttentionJob& job, int query) { return job.first_position + query / job.queries; }

// The first block after the sinks in the window of the token at a position; 0 without a window.
static inline int first_block(const AttentionJob& job, int position) {
  return job.sink_cos == nullptr ? 0 : larger(job.sink_blocks, position / kLanes - job.window_blocks);
}

// Whether block b lies entirely outside the window that begins with block `first`.
static inline bool is_out_of_reach(const AttentionJob& job, int b, int first) {
  return b >= job.sink_blocks && b < first;
}

// The loop of a tile of queries over the cache: load(cos, sin), then step(b) for every block that one of them attends
// to. `first` is the first block of the earliest query's window, `blocks` the number of blocks up to the last query.
template <class Load, class Step>
static MINICPM_INLINE void for_blocks(const AttentionJob& job, int first, int blocks, Load load, Step step) {
  int b = 0;
  if (job.sink_cos != nullptr) {
    load(job.sink_cos, job.sink_sin);
    for (; b < smaller(job.sink_blocks, blocks); ++b) step(b);
    if (b == blocks) return;
    b = first;
  }
  load(job.cos, job.sin);
  for (; b < blocks; ++b) step(b);
}

static inline float* output_of(const AttentionJob& job, int query) {
  return job.out + query / job.queries * job.out_stride + query % job.queries * job.head_dim;
}

// Rotates by cos and sin (tokens, head_dim / 2) and scales a query.
static inline void load_query(const AttentionJob& job, int query, const float* cos, const float* sin, float* out) {
  const int D = job.head_dim, token = query / job.queries;
  const size_t half = static_cast<size_t>(token) * (D / 2);
  rotate(job.qkv + token * job.qkv_stride + job.query_offset + query % job.queries * D, cos + half, sin + half, D, out);
  for (int k = 0; k < D; ++k) out[k] *= job.query_scale;
}

// Rotates, scales and quantizes a query: its codes in groups of 4, `step` bytes apart, its E scales and sums `lanes`
// apart. `head` (32 E) is scratch memory.
template <class V>
static void quantize_query(const AttentionJob& job, int query, const float* cos, const float* sin, float* head,
                           int8_t* codes, int lanes, float* scales, int32_t* sums) {
  const int D = job.head_dim, E = job.cache.blocks;
  load_query(job, query, cos, sin, head);
  for (int k = D; k < E * kHeadBlock; ++k) head[k] = 0.0f;
  for (int j = 0; j < E; ++j) {
    quantize_group<V>(head + j * kHeadBlock, kHeadBlock, codes + j * kHeadBlock * lanes, 4 * lanes, scales + j * lanes,
                      sums + j * lanes);
  }
}

// Prefetches block b, if it exists, into the L2 cache, which has more outstanding misses than the L1. The last
// block was just written. Inlined, because GCC 12 removes calls of a function that only prefetches.
static MINICPM_INLINE void prefetch(const HeadCache& cache, int b, int blocks) {
  if (b + 1 >= blocks) return;
  const uint8_t* data = cache.block(b).data;
  for (size_t line = 0; line < HeadBlock::bytes(cache.blocks); line += 64) __builtin_prefetch(data + line, 0, 2);
}

// --- few queries: a lane is a token ------------------------------------------------------------------------------

// The lines that are prefetched one by one while a block of a head is processed: those of a block further on,
// first into the L2 cache and later into the L1. As with weights (linear.h), spread evenly: requests for all lines of a
// block at once queue up (11 GB/s on a core of an Emerald Rapids Xeon; 14.5 GB/s if spread).
template <class V>
struct Ahead {
  static constexpr int kFarPlaces = 12, kNearPlaces = 4;

  // The block after `head` of block b, in the order of attend_together; at the end of the cache the last block.
  Ahead(const AttentionJob& job, int head, int b, int blocks)
      : far(place(job, head + kFarPlaces, b, blocks)), near(place(job, head + kNearPlaces, b, blocks)) {}

  MINICPM_INLINE void ask(size_t offset) const {
    __builtin_prefetch(far + offset, 0, 2);
    __builtin_prefetch(near + offset);
  }

  const uint8_t *far, *near;

 private:
  static const uint8_t* place(const AttentionJob& job, int head, int b, int blocks) {
    for (; head >= job.heads; head -= job.heads) ++b;
    return job.cache.data(smaller(b, blocks - 1)) + job.cache.head_bytes * static_cast<size_t>(head);
  }
};

// The running softmax of R queries of one head, for any cache format: a lane is a token of a block.
template <class V, int R>
class Lanes {
 public:
  int first() const { return first_[0]; }
  int blocks() const { return position_[R - 1] / kLanes + 1; }

  void finish() const {
    for (int r = 0; r < R; ++r) {
      float* out = output_of(job_, first_query_ + r);
      for (int k = 0; k < job_.head_dim; ++k) out[k] = totals_[r * padded_ + k] / norm_[r];
    }
  }

 protected:
  using F = typename V::F;

  Lanes(const AttentionJob& job, int first_query, int padded) : job_(job), padded_(padded), first_query_(first_query) {
    for (int r = 0; r < R; ++r) {
      position_[r] = position_of(job, first_query + r);
      first_[r] = first_block(job, position_[r]);
      running_[r] = kMinusInfinity;
      norm_[r] = 0.0f;
    }
  }

  void begin(float* totals) {
    totals_ = totals;
    std::memset(totals_, 0, R * padded_ * sizeof(float));
  }

  // The number of tokens of block b, counted from its first, that query r attends to; 16 or more mean all.
  MINICPM_INLINE int attended(int b, int r) const {
    return is_out_of_reach(job_, b, first_[r]) ? 0 : larger(0, position_[r] - b * kLanes + 1);
  }

  // exp of the scores of a block of which query r attends to `count` tokens; and the factor for its totals. Tokens
  // after the query and before its window get -infinity, hence a weight of exactly 0: their memory may hold anything,
  // even NaN.
  MINICPM_INLINE F probabilities(int r, int count, F score, float* alpha) {
    const bool is_whole = count >= kLanes;
    if (!is_whole) score = V::keep_first(score, count, V::set1(kMinusInfinity));
    const float largest = V::largest(score);
    *alpha = 1.0f;
    if (largest > running_[r]) {  // rare; exp(0) is 1
      float lanes[kLanes];
      V::store(lanes, exponential<V>(V::set1(running_[r] - largest)));
      *alpha = lanes[0];
      running_[r] = largest;
    }
    F p = exponential<V>(V::sub(score, V::set1(running_[r])));
    if (!is_whole) p = V::keep_first(p, count, V::zero());
    norm_[r] = norm_[r] * *alpha + V::fold(p);
    return p;
  }

  const AttentionJob job_;
  const int padded_, first_query_;
  float* totals_ = nullptr;  // (R, padded)

 private:
  int position_[R], first_[R];
  float running_[R], norm_[R];
};

// R queries of one head of keys and values in int8.
template <class V, int R>
class TokenLanes : public Lanes<V, R> {
  using Base = Lanes<V, R>;
  using Base::first_query_;
  using Base::job_;
  using Base::padded_;
  using Base::totals_;
  using typename Base::F;

 public:
  // Heads whose blocks are processed together: scores to weights is a long chain of dependent operations, and
  // independent heads fill its latency.
  static constexpr int kTogether = larger(1, 3 / R);

  TokenLanes(const AttentionJob& job, int first_query)
      : Base(job, first_query, job.cache.blocks * kHeadBlock), E_(job.cache.blocks) {
    Scratch<V> scratch(job.scratch);
    head_ = scratch.floats(padded_);
    this->begin(scratch.floats(R * padded_));
    codes_ = scratch.codes(R * padded_);
    scales_ = scratch.floats(R * E_);
    sums_ = scratch.words(R * E_);
    weights_ = scratch.codes(R * E_ * kLanes);
    weight_scales_ = scratch.floats(R * E_);
  }

  void load(const float* cos, const float* sin) {
    for (int r = 0; r < R; ++r) {
      quantize_query<V>(job_, first_query_ + r, cos, sin, head_, codes_ + 4 * r, R, scales_ + r, sums_ + r);
    }
  }

  // Block b of `count` heads from `first` on.
  template <int count>
  static MINICPM_INLINE void step(std::optional<TokenLanes>* heads, const AttentionJob& job, int first, int b) {
    const int blocks = heads[first]->blocks();
    std::optional<Ahead<V>> ahead[count];
    HeadBlock block[count];
    F score[count][R];
    float alpha[count][R];
    unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
      ahead[i].emplace(job, first + i, b, blocks);
      block[i] = heads[first + i]->job_.cache.block(b);
      heads[first + i]->scores(block[i], *ahead[i], score[i]);
    });
    unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
      unroll<R>([&](auto r)
                    MINICPM_INLINE_LAMBDA { alpha[i][r] = heads[first + i]->weigh(block[i], b, r, score[i][r]); });
    });
    unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA { heads[first + i]->sum_values(block[i], *ahead[i], alpha[i]); });
  }

 private:
  MINICPM_INLINE void scores(const HeadBlock& block, const Ahead<V>& ahead, F* score) const {
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { score[r] = V::zero(); });
    for (int j = 0; j < E_; ++j) {
      typename V::I sum[R];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::set1_int(-V::kOffset8 * sums_[j * R + r]); });
      const int8_t* codes = codes_ + j * kHeadBlock * R;
      const uint8_t* keys = block.keys() + j * 8 * 64;
      unroll<8>([&](auto i) MINICPM_INLINE_LAMBDA {
        ahead.ask(static_cast<size_t>(j * 8 + i) * 64);
        const typename V::Weights8 w = V::prepare8(V::load_bytes(keys + i * 64));
        unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::dot8_repeated(sum[r], w, codes + (i * R + r) * 4); });
      });
      const F key_scales = V::load_half(block.key_scales(E_) + j * kLanes);
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
        const F part = V::mul(V::mul(V::to_float(sum[r]), key_scales), V::set1(scales_[j * R + r]));
        score[r] = V::add(score[r], part);
      });
    }
  }

  // The weights of query r in block b as codes and scales; and the factor for its totals so far.
  MINICPM_INLINE float weigh(const HeadBlock& block, int b, int r, F score) {
    const int count = this->attended(b, r);
    float alpha;
    const F p = this->probabilities(r, count, score, &alpha);
    for (int j = 0; j < E_; ++j) {
      F weight = V::mul(p, V::load_half(block.value_scales(E_) + j * kLanes));
      if (count < kLanes) weight = V::keep_first(weight, count, V::zero());
      const int place = r * E_ + j;
      float factor;
      weight_scales_[place] = scale_of_group(V::largest_int(V::magnitude_bits(weight)), &factor);
      typename V::I codes = V::zero_int();  // with a factor of 0 a weight may be NaN or infinite
      if (factor != 0.0f) {
        codes = V::to_int(V::mul(weight, V::set1(factor)));
        weight_scales_[place] = V::fold(weight) / static_cast<float>(V::sum_int(codes));
      }
      V::store_as_int8(weights_ + place * kLanes, codes);
    }
    return alpha;
  }

  // totals = totals * alpha + the sums of the block's values.
  MINICPM_INLINE void sum_values(const HeadBlock& block, const Ahead<V>& ahead, const float* alpha) const {
    for (int j = 0; j < E_; ++j) ahead.ask(static_cast<size_t>(64 * kLanes * E_ + 64 * j));  // scales
    for (int e = 0; e < padded_; e += kLanes) {
      const int place = e / kHeadBlock;
      typename V::I sum[R];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::zero_int(); });
      unroll<kLanes / 4>([&](auto g) MINICPM_INLINE_LAMBDA {
        ahead.ask(static_cast<size_t>(32 * kLanes * E_ + (g * padded_ + e) * 4));
        const typename V::I values = V::load_words(block.values(E_) + (g * padded_ + e) * 4);
        unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
          sum[r] = V::dot_unsigned(sum[r], V::repeat4(weights_ + (place + r * E_) * kLanes + g * 4), values);
        });
      });
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
        float* total = totals_ + r * padded_ + e;
        const F part = V::mul(V::to_float(sum[r]), V::set1(weight_scales_[place + r * E_]));
        V::store(total, V::add(V::mul(V::load(total), V::set1(alpha[r])), part));
      });
    }
  }

  const int E_;
  float* head_;           // (32 E)
  int8_t* codes_;         // (8 E, R, 4)
  float* scales_;         // (E, R)
  int32_t* sums_;         // (E, R)
  int8_t* weights_;       // (R, E, 16)
  float* weight_scales_;  // (R, E)
};

// --- many queries: a lane is a query -----------------------------------------------------------------------------

// Up to 16 queries of one head of keys and values.
template <class V>
class QueryLanes {
 public:
  QueryLanes(const AttentionJob& job, int first_query, int end_query)
      : job_(job), E_(job.cache.blocks), padded_(E_ * kHeadBlock), first_query_(first_query), end_query_(end_query) {
    Scratch<V> scratch(job.scratch);
    head_ = scratch.floats(padded_);
    totals_ = scratch.floats(padded_ * kLanes);
    codes_ = reinterpret_cast<uint8_t*>(scratch.codes(padded_ * kLanes));
    keys_ = scratch.codes(padded_ * kLanes);
    scales_ = scratch.floats(E_ * kLanes);
    sums_ = scratch.words(E_ * kLanes);
    scores_ = scratch.floats(kLanes * kLanes);
    numbers_ = scratch.floats(kLanes * kLanes);
    weights_ = scratch.words(E_ * 4 * kLanes);
    weight_scales_ = scratch.floats(E_ * kLanes);
    std::memset(totals_, 0, padded_ * kLanes * sizeof(float));
  }

  void run() {
    F running = V::set1(kMinusInfinity), norm = V::zero();
    const int blocks = position_of(job_, end_query_ - 1) / kLanes + 1;
    const auto step = [&](int b) {
      const HeadBlock block = job_.cache.block(b);
      prefetch(job_.cache, b + 1, blocks);
      scores(block);
      if (hides_any(b)) hide(b, scores_, V::set1(kMinusInfinity));
      F largest = running;
      for (int t = 0; t < kLanes; ++t) largest = V::max(largest, V::load(scores_ + t * kLanes));
      const F alpha = exponential<V>(V::sub(running, largest));
      running = largest;
      norm = V::add(V::mul(norm, alpha), weigh(block, b, largest));
      sum_values(block, alpha);
    };
    for_blocks(
        job_, first_block(job_, position_of(job_, first_query_)), blocks,
        [&](const float* cos, const float* sin) { load(cos, sin); }, step);
    for (int k = 0; k < job_.head_dim; ++k) V::store(totals_ + k * kLanes, V::div(V::load(totals_ + k * kLanes), norm));
    for (int query = first_query_; query < end_query_; ++query) {
      float* out = output_of(job_, query);
      for (int k = 0; k < job_.head_dim; ++k) out[k] = totals_[k * kLanes + query - first_query_];
    }
  }

 private:
  using F = typename V::F;
  static constexpr int kRows = V::kSumsAtOnce;

  void load(const float* cos, const float* sin) {
    int8_t* codes = reinterpret_cast<int8_t*>(codes_);
    for (int lane = 0; lane < kLanes; ++lane) {
      quantize_query<V>(job_, smaller(first_query_ + lane, end_query_ - 1), cos, sin, head_, codes + 4 * lane, kLanes,
                        scales_ + lane, sums_ + lane);
    }
    for (int i = 0; i < padded_ * kLanes; ++i) codes_[i] ^= 0x80;
  }

  MINICPM_INLINE void scores(const HeadBlock& block) const {
    float key_scales[kLanes];
    for (int j = 0; j < E_; ++j) {
      V::store(key_scales, V::load_half(block.key_scales(E_) + j * kLanes));
      const F query_scales = V::load(scales_ + j * kLanes);
      int32_t key_sums[kLanes];
      // Here the keys are broadcast and signed, the queries unsigned.
      typename V::I total = V::set1_int(-V::kOffset8 * kHeadBlock);
      for (int i = j * 8; i < j * 8 + 8; ++i) {
        const typename V::Bytes keys = V::load_bytes(block.keys() + i * 64);
        total = V::dot8(total, V::prepare8(keys), V::set1_int(0x01010101));
        V::store_bytes(reinterpret_cast<uint8_t*>(keys_ + i * 64), V::flip_signs(keys));
      }
      V::store_int(key_sums, total);
      for (int t = 0; t < kLanes; t += kRows) {
        typename V::I sum[kRows];
        unroll<kRows>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::set1_int(-V::kOffset8 * key_sums[t + r]); });
        const int8_t* keys = keys_ + j * 8 * 64 + t * 4;
        const uint8_t* codes = codes_ + j * 8 * 64;
        for (int i = 0; i < 8; ++i) {
          const typename V::Weights8 w = V::prepare8(V::load_bytes(codes + i * 64));
          unroll<kRows>([&](auto r)
                            MINICPM_INLINE_LAMBDA { sum[r] = V::dot8_repeated(sum[r], w, keys + i * 64 + r * 4); });
        }
        unroll<kRows>([&](auto r) MINICPM_INLINE_LAMBDA {
          float* score = scores_ + (t + r) * kLanes;
          const F part = V::mul(V::mul(V::to_float(sum[r]), V::set1(key_scales[t + r])), query_scales);
          V::store(score, V::add(j == 0 ? V::zero() : V::load(score), part));
        });
      }
    }
  }

  bool hides_any(int b) const {
    return b * kLanes + kLanes - 1 > position_of(job_, first_query_) ||
           is_out_of_reach(job_, b, first_block(job_, position_of(job_, end_query_ - 1)));
  }

  // Sets numbers (16 tokens, 16 queries) of tokens after a query or before its window to `hidden`: their memory may
  // hold anything.
  void hide(int b, float* numbers, F hidden) const {
    int reach = kLanes;  // for lanes from here on it lies before their windows
    if (job_.sink_cos != nullptr && b >= job_.sink_blocks) {
      const int end = (b + job_.window_blocks + 1) * kLanes;  // the first position whose window begins after b
      reach = larger(0, smaller(kLanes, (end - job_.first_position) * job_.queries - first_query_));
    }
    for (int t = 0; t < kLanes; ++t) {
      const int count = (b * kLanes + t - job_.first_position) * job_.queries - first_query_;
      float* row = numbers + t * kLanes;
      const F seen = V::keep_first(V::load(row), reach, hidden);
      V::store(row, V::keep_first(hidden, larger(0, smaller(kLanes, count)), seen));
    }
  }

  // The weights of block b as codes and scales; returns the sums of the unquantized weights.
  MINICPM_INLINE F weigh(const HeadBlock& block, int b, F largest) const {
    for (int t = 0; t < kLanes; ++t) {
      V::store(scores_ + t * kLanes, exponential<V>(V::sub(V::load(scores_ + t * kLanes), largest)));
    }
    float value_scales[kLanes];
    for (int j = 0; j < E_; ++j) {
      V::store(value_scales, V::load_half(block.value_scales(E_) + j * kLanes));
      for (int t = 0; t < kLanes; ++t) {
        V::store(numbers_ + t * kLanes, V::mul(V::load(scores_ + t * kLanes), V::set1(value_scales[t])));
      }
      if (hides_any(b)) hide(b, numbers_, V::zero());
      quantize_weights(weights_ + j * 4 * kLanes, weight_scales_ + j * kLanes);
    }
    return sums(scores_);
  }

  // The sums over 16 tokens of numbers (16 tokens, 16 queries), in the order of docs/numerics.md, section 1.
  static MINICPM_INLINE F sums(const float* numbers) {
    F half[kLanes / 2];
    unroll<8>([&](auto t) MINICPM_INLINE_LAMBDA {
      half[t] = V::add(V::load(numbers + t * kLanes), V::load(numbers + (t + 8) * kLanes));
    });
    unroll<4>([&](auto t) MINICPM_INLINE_LAMBDA { half[t] = V::add(half[t], half[t + 4]); });
    return V::add(V::add(half[0], half[2]), V::add(half[1], half[3]));
  }

  // numbers_ (16 tokens, 16 queries) -> codes (4, 16 queries, 4 tokens) and scales (16 queries).
  MINICPM_INLINE void quantize_weights(int32_t* codes, float* scales) const {
    typename V::I bits = V::zero_int();
    for (int t = 0; t < kLanes; ++t) bits = V::max_int(bits, V::magnitude_bits(V::load(numbers_ + t * kLanes)));
    int32_t words[kLanes];
    float largest[kLanes], factors[kLanes];
    V::store_int(words, bits);
    std::memcpy(largest, words, sizeof largest);
    const bool is_finite = V::largest_int(bits) < kInfinityBits;
    if (is_finite) {
      const F m = V::load(largest);
      V::store(factors, V::zero_below(V::div(V::set1(127.0f), m), m, kSmallestActivation));
    } else {
      for (int i = 0; i < kLanes; ++i) {
        scales[i] = scale_of_group(words[i], &factors[i]);
        for (int t = 0; t < kLanes && factors[i] == 0.0f; ++t) numbers_[t * kLanes + i] = 0.0f;
      }
    }
    typename V::I total = V::zero_int();
    const F factor = V::load(factors);
    for (int g = 0; g < kLanes / 4; ++g) {
      typename V::I code[4];
      unroll<4>([&](auto t) MINICPM_INLINE_LAMBDA {
        code[t] = V::to_int(V::mul(V::load(numbers_ + (4 * g + t) * kLanes), factor));
        total = V::add_int(total, code[t]);
      });
      V::store_int(codes + g * kLanes, V::pack4(code[0], code[1], code[2], code[3]));
    }
    float exact[kLanes];
    V::store(exact, V::zero_below(V::div(sums(numbers_), V::to_float(total)), V::load(factors), kSmallestActivation));
    for (int i = 0; i < kLanes; ++i) scales[i] = is_finite || factors[i] != 0.0f ? exact[i] : scales[i];
  }

  // totals = totals * alpha + the sums of the block's values.
  MINICPM_INLINE void sum_values(const HeadBlock& block, F alpha) const {
    for (int e = 0; e < padded_; e += kRows) {
      const int32_t* weights = weights_ + e / kHeadBlock * 4 * kLanes;
      const F scale = V::load(weight_scales_ + e / kHeadBlock * kLanes);
      typename V::I sum[kRows];
      unroll<kRows>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::zero_int(); });
      for (int g = 0; g < kLanes / 4; ++g) {
        const typename V::I codes = V::load_words(reinterpret_cast<const int8_t*>(weights + g * kLanes));
        const int8_t* values = block.values(E_) + (g * padded_ + e) * 4;
        unroll<kRows>([&](auto r)
                          MINICPM_INLINE_LAMBDA { sum[r] = V::dot_unsigned_repeated(sum[r], codes, values + 4 * r); });
      }
      unroll<kRows>([&](auto r) MINICPM_INLINE_LAMBDA {
        float* total = totals_ + (e + r) * kLanes;
        V::store(total, V::add(V::mul(V::load(total), alpha), V::mul(V::to_float(sum[r]), scale)));
      });
    }
  }

  const AttentionJob job_;
  const int E_, padded_, first_query_, end_query_;
  float* head_;           // (32 E)
  float* totals_;         // (32 E, 16)
  uint8_t* codes_;        // (8 E, 16, 4) plus 128
  int8_t* keys_;          // (8 E, 16, 4)
  float* scales_;         // (E, 16)
  int32_t* sums_;         // (E, 16), unused here
  float* scores_;         // (16 tokens, 16)
  float* numbers_;        // (16 tokens, 16): the weights of one of the E blocks
  int32_t* weights_;      // (E, 4, 16 queries, 4 tokens)
  float* weight_scales_;  // (E, 16)
};

// --- keys and values in bfloat16 ---------------------------------------------------------------------------------

// R queries of one head: a lane is a token for scores, a number of the head for values.
template <class V, int R>
class Bfloat16Lanes : public Lanes<V, R> {
  using Base = Lanes<V, R>;
  using Base::first_query_;
  using Base::job_;
  using Base::padded_;
  using Base::totals_;
  using typename Base::F;

 public:
  // Sums are long chains of dependent additions; heads that are processed together hide their latency.
  static constexpr int kTogether = larger(1, 4 / R);

  Bfloat16Lanes(const AttentionJob& job, int first_query)
      : Base(job, first_query, round_up(job.head_dim, kLanes)), D_(job.head_dim) {
    Scratch<V> scratch(job.scratch);
    queries_ = scratch.floats(R * D_);
    this->begin(scratch.floats(R * padded_));
    weights_ = scratch.floats(R * kLanes);
  }

  void load(const float* cos, const float* sin) {
    for (int r = 0; r < R; ++r) load_query(job_, first_query_ + r, cos, sin, queries_ + r * D_);
  }

  // Block b of `count` heads from `first` on.
  template <int count>
  static MINICPM_INLINE void step(std::optional<Bfloat16Lanes>* heads, const AttentionJob& job, int first, int b) {
    const int D = job.head_dim, padded = heads[first]->padded_, blocks = heads[first]->blocks();
    std::optional<Ahead<V>> ahead[count];
    Bfloat16Block block[count];
    F score[count][R];
    float alpha[count][R];
    unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
      ahead[i].emplace(job, first + i, b, blocks);
      block[i] = {heads[first + i]->job_.cache.data(b)};
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { score[i][r] = V::zero(); });
    });
    for (int k = 0; k < D; ++k) {
      unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
        if (k % 2 == 0) ahead[i]->ask(static_cast<size_t>(k) * 2 * kLanes);
        const F keys = V::load_bfloat16(block[i].keys() + k * kLanes);
        unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
          score[i][r] = V::add(score[i][r], V::mul(V::set1(heads[first + i]->queries_[r * D + k]), keys));
        });
      });
    }
    bool counts_for_all[count][kLanes];
    unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
      Bfloat16Lanes& head = *heads[first + i];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { alpha[i][r] = head.weigh(b, r, score[i][r]); });
      // The values of a token that a query does not attend to may be anything, even NaN.
      for (int t = 0; t < kLanes; ++t) {
        counts_for_all[i][t] = true;
        for (int r = 0; r < R; ++r) counts_for_all[i][t] &= head.weights_[r * kLanes + t] != 0.0f;
      }
    });
    for (int e = 0; e < padded; e += kLanes) {
      unroll<count>([&](auto i) MINICPM_INLINE_LAMBDA {
        heads[first + i]->sum_values(block[i], *ahead[i], e, counts_for_all[i], alpha[i]);
      });
    }
  }

 private:
  // The weights of query r in block b; and the factor for its totals so far.
  MINICPM_INLINE float weigh(int b, int r, F score) {
    float alpha;
    V::store(weights_ + r * kLanes, this->probabilities(r, this->attended(b, r), score, &alpha));
    return alpha;
  }

  // totals = totals * alpha + the sums of the block's values, of numbers e .. e + 15 of the head.
  MINICPM_INLINE void sum_values(const Bfloat16Block& block, const Ahead<V>& ahead, int e, const bool* counts_for_all,
                                 const float* alpha) const {
    F sum[R];
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[r] = V::zero(); });
    for (int t = 0; t < kLanes; ++t) {
      if (e % (2 * kLanes) == 0) ahead.ask(static_cast<size_t>(D_ * kLanes + t * padded_ + e) * 2);
      const F values = V::load_bfloat16(block.values(D_) + t * padded_ + e);
      const auto add = [&](auto r) MINICPM_INLINE_LAMBDA {
        sum[r] = V::add(sum[r], V::mul(V::set1(weights_[r * kLanes + t]), values));
      };
      if (counts_for_all[t]) {
        unroll<R>(add);
      } else {
        unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
          if (weights_[r * kLanes + t] != 0.0f) add(r);
        });
      }
    }
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
      float* total = totals_ + r * padded_ + e;
      V::store(total, V::add(V::mul(V::load(total), V::set1(alpha[r])), sum[r]));
    });
  }

  const int D_;
  float* queries_;  // (R, D)
  float* weights_;  // (R, 16)
};

// Calls body with the largest of the ascending `options` that is at most `count`.
template <class Body, int... options>
static MINICPM_INLINE void with_widest(std::integer_sequence<int, options...>, int count, Body&& body) {
  int widest = 1;
  ((widest = options <= count ? options : widest), ...);
  ((options == widest ? body(std::integral_constant<int, options>{}) : void()), ...);
}

// R queries of every head of a job; for each block all heads in turn: adjacent heads are contiguous in memory,
// so memory is read in long runs.
template <class Lanes>
static void attend_together(const AttentionJob& job, int first_query) {
  constexpr int kTogether = Lanes::kTogether;
  std::optional<Lanes> heads[kMostHeads];
  for (int i = 0; i < job.heads; ++i) heads[i].emplace(head_of(job, i), first_query);
  for_blocks(
      job, heads[0]->first(), heads[0]->blocks(),
      [&](const float* cos, const float* sin) {
        for (int i = 0; i < job.heads; ++i) heads[i]->load(cos, sin);
      },
      [&](int b) {
        int i = 0;
        for (; i + kTogether <= job.heads; i += kTogether) Lanes::template step<kTogether>(heads, job, i, b);
        for (; i < job.heads; ++i) Lanes::template step<1>(heads, job, i, b);
      });
  for (int i = 0; i < job.heads; ++i) heads[i]->finish();
}

template <class V>
static void attend_to_bfloat16(const AttentionJob& job) {
  for (int q = job.first_query; q < job.end_query;) {
    with_widest(typename V::DirectWidths{}, job.end_query - q, [&](auto width) {
      attend_together<Bfloat16Lanes<V, width>>(job, q);
      q += width;
    });
  }
}

template <class V>
static void attend(const AttentionJob& job) {
  if (job.cache.kind == CacheKind::kBfloat16) return attend_to_bfloat16<V>(job);
  int q = job.first_query;
  for (; q + kQueryLanesFrom <= job.end_query; q += kLanes) {
    for (int i = 0; i < job.heads; ++i) QueryLanes<V>(head_of(job, i), q, smaller(q + kLanes, job.end_query)).run();
  }
  while (q < job.end_query) {
    with_widest(typename V::DirectWidths{}, job.end_query - q, [&](auto width) {
      attend_together<TokenLanes<V, width>>(job, q);
      q += width;
    });
  }
}
