// The interface of a set of kernels, as plain pointers and sizes; one table per instruction set (isa.cc selects it).
// Nothing here owns memory: every pointer belongs to the model, its workspace or a pool of keys and values.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int kLanes = 16;      // virtual lanes of a float sum, rows of a weight block, tokens of a cache block
constexpr int kHeadBlock = 32;  // numbers of a head that share a scale
constexpr int kLargestGroup = 128;
constexpr int kNibbleOffset = 8;     // int4 codes are stored as w + 8
constexpr int kPanelFeatures = 640;  // input features a GEMM panel holds: 20 KB of codes for 32 rows, of an L1 of 32 KB

constexpr int kDirectTokens = 16;  // up to this many tokens a product reads the packed weights directly

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a < b ? b : a; }

enum class WeightKind { kInt4, kInt8, kHalf, kBfloat16, kFloat };

// A weight (N, K). Whole-number kinds are packed in blocks of 16 rows, block after block; a block is, per group of G
// inputs, 16 lanes of codes and then 16 scales. A 64-byte unit of codes gives every row 4 bytes: int8 codes of 4 inputs
// (plus 128), or int4 codes of 8 (plus 8), the first 4 in the low nibbles. Float kinds are the rows as a file has them.
struct Weight {
  WeightKind kind;
  const uint8_t* data;
  int rows;        // N
  int columns;     // K
  int group_size;  // G; 0 for float kinds
  bool has_half_scales;

  bool is_integer() const { return kind == WeightKind::kInt4 || kind == WeightKind::kInt8; }
  int groups() const { return ceil_div(columns, group_size); }
  size_t code_bytes() const { return static_cast<size_t>(group_size) * kLanes / (kind == WeightKind::kInt4 ? 2 : 1); }
  size_t group_bytes() const { return code_bytes() + (has_half_scales ? 2 : 4) * kLanes; }
  size_t block_bytes() const { return groups() * group_bytes(); }
  int number_bytes() const { return kind == WeightKind::kFloat ? 4 : 2; }  // of float kinds
  size_t row_bytes() const { return static_cast<size_t>(columns) * static_cast<size_t>(number_bytes()); }
};

// Quantized activations of T tokens in tiles of `width` tokens. The last tile is narrower, but a multiple of `granule`,
// so that kernels for few widths suffice: its padding holds stale numbers whose products are ignored. A tile of w
// tokens has, per 4 input features, 4 codes of each token; and, per group, w scales and w starts: the initial value of
// a sum over int4 codes, -8 times the sum of the token's codes.
struct Activations {
  int8_t* codes;
  float* scales;
  int32_t* starts;
  int tokens;
  int width;
  int granule;
  int columns;  // K rounded up to a multiple of kLargestGroup: distance of tiles is width * columns
  int groups;   // ceil(K / G): distance of tiles' scales is width * groups

  int tiles() const { return ceil_div(tokens, width); }
  int tile_width(int tile) const { return round_up(smaller(width, tokens - tile * width), granule); }
  int8_t* tile_codes(int tile) const { return codes + static_cast<size_t>(tile) * width * columns; }
  float* tile_scales(int tile) const { return scales + static_cast<size_t>(tile) * width * groups; }
  int32_t* tile_starts(int tile) const { return starts + static_cast<size_t>(tile) * width * groups; }
};

// Inputs of float weights, a token's followed by zeros up to a multiple of 32: as they are, and for weights in bfloat16
// rounded to it, as pairs, in the form and with the numbers (of at most 4 bytes) of the instruction set.
struct FloatInputs {
  const float* floats;
  size_t stride;
  void* pairs;
  size_t pair_stride;  // in inputs, too
};

// The destination of a product (T, N): out[t * stride + n] = y, or += y * residual_scale.
struct Output {
  float* out;
  size_t stride;
  int columns;  // N: columns beyond it are not written
  bool is_residual;
  float residual_scale;
};

// One block of 16 tokens of one head's keys and values, `blocks` = E of them times 32 numbers:
// keys [8 E][16 tokens][4] plus 128, values [4][32 E][4 tokens], key scales [E][16], value scales [E][16] (binary16).
struct HeadBlock {
  uint8_t* data;

  static constexpr size_t bytes(int blocks) { return static_cast<size_t>(blocks) * (2 * 32 * kLanes + 2 * 2 * kLanes); }
  uint8_t* keys() const { return data; }
  int8_t* values(int blocks) const { return reinterpret_cast<int8_t*>(data + 32 * kLanes * blocks); }
  uint16_t* key_scales(int blocks) const { return reinterpret_cast<uint16_t*>(data + 64 * kLanes * blocks); }
  uint16_t* value_scales(int blocks) const { return key_scales(blocks) + kLanes * blocks; }
};

// The same in bfloat16, of D numbers: keys [D][16 tokens], values [16 tokens][D rounded up to 16].
struct Bfloat16Block {
  uint8_t* data;

  static constexpr size_t bytes(int D) { return static_cast<size_t>(D + round_up(D, kLanes)) * 2 * kLanes; }
  uint16_t* keys() const { return reinterpret_cast<uint16_t*>(data); }
  uint16_t* values(int D) const { return keys() + static_cast<size_t>(D) * kLanes; }
};

enum class CacheKind { kInt8, kBfloat16 };

constexpr size_t head_block_bytes(CacheKind kind, int head_dim) {
  return kind == CacheKind::kInt8 ? HeadBlock::bytes(ceil_div(head_dim, kHeadBlock)) : Bfloat16Block::bytes(head_dim);
}

// The cached tokens of one head of one layer: blocks of a pool, listed by number in the sequence's table. A table has
// one entry more than blocks, so that the block after the last can be prefetched; that entry's block is never used.
struct HeadCache {
  uint8_t* first;        // the head's part of the pool's block 0 in this layer
  const int32_t* table;  // the pool's number of the sequence's block 0, 1, ...
  size_t stride;         // bytes from one block of the pool to the next
  size_t head_bytes;     // from one head's part of a block to the next
  int blocks;            // E
  CacheKind kind;

  uint8_t* data(int index) const { return first + static_cast<size_t>(table[index]) * stride; }
  HeadBlock block(int index) const { return {data(index)}; }
};

// Attention of the new tokens of one sequence for `heads` adjacent heads of keys and values. Queries of a head are
// numbered by token and then by query head. Pointers refer to the first head; the next heads follow.
struct AttentionJob {
  HeadCache cache;
  const float* qkv;  // the first new token's row; its queries, keys and values
  size_t qkv_stride;
  int query_offset, key_offset, value_offset;  // of the heads in a row
  int heads;                                   // at most kMostHeads
  int queries;                                 // heads of queries that share one of them
  int head_dim;
  const float *cos, *sin;  // (tokens, head_dim / 2)
  // With a sliding window the rotation relative to the attention sinks, else null; blocks of the sinks, and of the
  // window before a token's own.
  const float *sink_cos, *sink_sin;
  int sink_blocks, window_blocks;
  int first_position;
  int tokens;
  float query_scale;
  int first_query, end_query;  // the queries to compute
  float* out;                  // the first new token's row, at this job's first query head
  size_t out_stride;
  float* scratch;  // attention_scratch_floats for every head
};

constexpr int kMostHeads = 12;       // of a job; their running sums fit together in the L1 cache
constexpr int kQueryLanesFrom = 12;  // from this many queries of a head on, one lane per query is faster

constexpr size_t attention_scratch_floats(int head_dim) {
  const size_t padded = round_up(head_dim, kHeadBlock), blocks = padded / kHeadBlock;
  // The scratch memory of QueryLanes (attention.h), the larger of the two, every part rounded up to 16.
  return padded * (1 + kLanes + 2 * kLanes / 4) + blocks * 3 * kLanes + kLanes * kLanes + blocks * 4 * kLanes +
         kLanes * kLanes;
}

// Sampling (docs/chat-and-sampling.md): a weight is exp(score - best) * 2**35, rounded down.
constexpr int kWeightShift = 35;
constexpr int kBucketsPerNat = 64;
constexpr int kScoreBuckets = 25 * kBucketsPerNat;  // exp(-24.3) is the smallest weight of 1

struct Kernels {
  const char* name;
  int direct_width;  // tokens of a tile of linear_direct
  int gemm_width;    // tokens of a tile of linear_panels
  int gemm_blocks;   // blocks of 16 rows of a panel
  int float_tokens;  // tokens of a tile of linear_rows

  // out (K) = the row `id` of a weight, times scale.
  void (*embed)(const Weight&, int id, float scale, float* out);
  // out (K) = x (K) normalised by its root mean square, times weight; then times scale if that is not 1. x is
  // followed by zeros up to a multiple of 16.
  void (*rms_norm)(const float* x, const float* weight, int K, float eps, float scale, float* out);
  // Codes, scales and starts of inputs [first, last) of token `token`; both are multiples of kLargestGroup, or last is
  // K; x is followed by zeros up to a multiple of kLargestGroup.
  void (*quantize)(const float* x, int first, int last, int G, const Activations&, int token);
  // Blocks [first, last) of 16 rows times all tokens, read directly from the packed weights.
  void (*linear_direct)(const Weight&, const Activations&, int first, int last, const Output&);
  // The same through panels that are unpacked into the cache; first is a multiple of gemm_blocks.
  void (*linear_panels)(const Weight&, const Activations&, int first, int last, const Output&, uint8_t* panel,
                        float* sums);
  // Inputs [first, last) of token `token` for weights in bfloat16; first is a multiple of 32.
  void (*prepare_pairs)(const float* x, int first, int last, const FloatInputs&, int token);
  // Rows [first, last) of a float weight times all tokens; few enough rows to fit in the L2 cache. sums has space
  // for (rows, float_tokens) vectors.
  void (*linear_rows)(const Weight&, const FloatInputs&, int tokens, int first, int last, const Output&, float* sums);
  // out[i] = silu(gate[i]) * up[i].
  void (*silu_multiply)(const float* gate, const float* up, int count, float* out);
  // Writes the new tokens' keys and values to the cache.
  void (*file_keys_and_values)(const AttentionJob&);
  // Attention of some of the queries; every token up to theirs is in the cache.
  void (*attend)(const AttentionJob&);
  // Divides scores by the temperature, a NaN becoming -infinity; returns the largest.
  float (*divide)(float* scores, size_t count, float temperature);
  // Weights, whole numbers, of scores that are at most `best`; in place where weights are the scores.
  void (*weigh)(const float* scores, size_t count, float best, float* weights);
  // The distance of each score from the best, in steps of 1 / kBucketsPerNat; the last bucket has all larger ones.
  void (*find_buckets)(const float* scores, size_t count, float best, uint16_t* buckets);
  // The machine's peaks (peaks.h).
  uint64_t (*read_words)(const uint64_t* words, size_t count);
  int64_t (*multiply_bytes)(int64_t rounds, int32_t* sink);
};

constexpr size_t panel_bytes(int gemm_blocks) {
  // Codes and, as floats, one scale per row and group of at least 32.
  return static_cast<size_t>(gemm_blocks) * kLanes * (kPanelFeatures + 4 * (kPanelFeatures / 32));
}

const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx2();
const Kernels* kernels_neoni8mm();
const Kernels* kernels_neondot();
const Kernels* kernels_generic();
