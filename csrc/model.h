// The forward pass of a MiniCPM decoder over a ragged batch: one call per step. All threads run the same code and
// synchronize at a barrier between operations. docs/numerics.md defines the arithmetic.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/kernels.h"
#include "kv_pool.h"
#include "thread_pool.h"

struct ModelShape {
  int hidden;
  int heads;
  int kv_heads;
  int head_dim;
  int intermediate;
  int vocabulary;
  float eps;
  float embedding_scale;
  float residual_scale;
  float logit_scale;
  float query_scale;
  // With a sliding window, else 0: its sink blocks, and its blocks before a token's own block (16 tokens each).
  int sink_blocks = 0, window_blocks = 0;
};

// Weights with a common input; their outputs are concatenated.
using Linear = std::vector<Weight>;

// The caller owns the bytes of weights and norms, which must outlive the model.
struct Layer {
  const float* attention_norm;  // (hidden)
  Linear qkv, o;
  const float* mlp_norm;  // (hidden)
  Linear gate_up, down;
};

// The new tokens of one sequence. Its table has the blocks of cached and new tokens and one more entry (kernels.h).
// No other row may use the blocks that new tokens are written to.
struct Row {
  const KvPool* pool;
  const int32_t* table;
  int length;  // tokens whose keys and values are cached
  int first;   // place of the first new token in the batch
  int count;   // of new tokens
};

struct Batch {
  std::vector<Row> rows;
  const int32_t* token_ids;          // (T); -1 - k: row k of `embeddings` in place of a token's embedding
  int tokens;                        // T
  const float *cos, *sin;            // (T, head_dim / 2)
  const float *sink_cos, *sink_sin;  // rotation relative to the sinks of a sliding window, or null
  const float* embeddings;           // (n, hidden), not scaled; or null
  const int32_t* wanted;             // indices in the batch whose logits are computed
  int wanted_count;
  float* logits;  // (wanted_count, vocabulary)
  float* hidden;  // (wanted_count, hidden): if not null, receives normed hidden states instead of logits
};

class Model {
 public:
  Model(const ModelShape& shape, const Kernels& kernels, int threads);
  ~Model();

  void set_embedding(const Weight& weight) { embedding_ = weight; }
  void add_layer(const Layer& layer) { layers_.push_back(layer); }
  void set_head(const float* norm, Linear head) { norm_ = norm, head_ = std::move(head); }

  const ModelShape& shape() const { return shape_; }
  int layers() const { return static_cast<int>(layers_.size()); }
  int threads() const { return pool_.size(); }

  // Throws std::bad_alloc before any change; keys and values are written only after the cached ones. Concurrent calls
  // are serialized.
  void forward(const Batch& batch);

 private:
  struct Workspace;

  std::vector<int> group_sizes() const;
  bool reads_mlp() const;
  bool has(WeightKind kind) const;
  void compute(const Batch& batch, int thread);
  void prepare_normed(const float* norm, const Linear& next, const int32_t* places, int tokens, float scale,
                      int thread);
  void prepare_rows(const Linear& next, const float* x, size_t stride, int tokens, int thread);
  void prepare_silu(const Linear& down, int tokens, int thread);
  void prepare_slice(const Linear& next, const float* x, int tokens, int token, int first, int last, int thread) const;
  template <class Body>
  void for_slices(int columns, int tokens, int thread, Body body);
  template <class Body>
  void for_chunks(int count, int step, int thread, Body body);
  static float* own_row(float* rows, int stride, int tokens, int thread);
  void apply(const Linear& linear, const float* x, size_t x_stride, int tokens, float* out, size_t stride,
             bool is_residual, int thread);
  FloatInputs float_inputs(const float* x, size_t stride, int tokens, int thread) const;
  void attend(const Batch& batch, int layer, int thread);
  AttentionJob attention_job(const Row& row, const Batch& batch, int layer, int head, int heads, int thread) const;
  int heads_per_unit(const Batch& batch) const;
  int queries_per_unit(const Batch& batch, int most) const;
  Activations activations(int columns, int G, int tokens, int thread) const;

  const ModelShape shape_;
  const Kernels& kernels_;
  Weight embedding_{};
  std::vector<Layer> layers_;
  const float* norm_ = nullptr;
  Linear head_;
  std::unique_ptr<Workspace> workspace_;
  std::atomic<int> next_head_{0}, next_unit_{0};
  Shares shares_;
  std::mutex mutex_;
  ThreadPool pool_;
};
