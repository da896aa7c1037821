#include "model.h"

#include <algorithm>
#include <cstring>

#include "system.h"

namespace {

constexpr int kGroupSizes[] = {32, 64, 128};

bool uses_group(const Linear& linear, int G) {
  for (const Weight& weight : linear) {
    if (weight.is_integer() && weight.group_size == G) return true;
  }
  return false;
}

bool uses_kind(const Linear& linear, WeightKind kind) {
  return std::any_of(linear.begin(), linear.end(), [&](const Weight& weight) { return weight.kind == kind; });
}

int columns_of(const Linear& linear) { return linear.front().columns; }

constexpr size_t kChunkBytes = size_t{32} << 10;  // of weights per chunk: about a microsecond of reading
// Of float weights with many tokens: as much as fits in an L2 cache, so that the tokens are read few times.
constexpr size_t kFloatChunkBytes = size_t{512} << 10;
constexpr int kMostFloatRows = 256;

// Zeroed memory, followed by one more cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) {
    const size_t bytes = count * sizeof(T) + 64;
    data_ = static_cast<T*>(allocate_memory(bytes));
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Buffer() { free_memory(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace

// All memory a step writes except the cache and the logits, for up to `tokens` tokens. The padding after a row
// stays zero: norms and groups read whole vectors. For a single token every thread has its own row of x, mlp and
// the activations (compute); if only the codes of mlp are needed, every thread always has one row of mlp.
struct Model::Workspace {
  Workspace(const ModelShape& shape, const Kernels& kernels, std::vector<int> groups, bool with_mlp, bool with_floats,
            bool with_pairs, int most_tokens, int threads)
      : tokens(larger(most_tokens, threads)),
        keeps_mlp(with_mlp),
        hidden_stride(round_up(shape.hidden, kLargestGroup)),
        mlp_stride(round_up(shape.intermediate, kLargestGroup)),
        qkv_stride(round_up((shape.heads + 2 * shape.kv_heads) * shape.head_dim, kLanes)),
        gate_up_stride(round_up(2 * shape.intermediate, kLanes)),
        widest(larger(hidden_stride, mlp_stride)),
        h(count(hidden_stride)),
        x(count(hidden_stride)),
        mlp(static_cast<size_t>(with_mlp ? tokens : threads) * static_cast<size_t>(mlp_stride)),
        y(count(larger(qkv_stride, gate_up_stride))),
        pairs(with_pairs ? count(widest) : 0),
        padded_tokens(static_cast<size_t>(tokens + larger(kernels.direct_width, kernels.gemm_width))),
        group_sizes(std::move(groups)),
        codes(group_sizes.size() * padded_tokens * widest),
        scales(group_sizes.size() * padded_tokens * widest / kGroupSizes[0]),
        starts(group_sizes.size() * padded_tokens * widest / kGroupSizes[0]),
        panel_stride(round_up(static_cast<int>(panel_bytes(kernels.gemm_blocks)), 64)),
        panels(panel_stride * threads),
        product_stride(static_cast<size_t>(tokens + kernels.gemm_width) * kernels.gemm_blocks * kLanes),
        products(product_stride * threads),
        float_sums_stride(static_cast<size_t>(kMostFloatRows) * kernels.float_tokens * kLanes),
        float_sums(with_floats ? float_sums_stride * threads : 0),
        scratch_stride(attention_scratch_floats(shape.head_dim) * kMostHeads),
        scratch(scratch_stride * threads) {}

  size_t count(int stride) const { return static_cast<size_t>(tokens) * stride; }

  const int tokens;
  const bool keeps_mlp;  // or only its codes
  const int hidden_stride, mlp_stride, qkv_stride, gate_up_stride, widest;
  Buffer<float> h;             // hidden states (T, hidden)
  Buffer<float> x;             // input of qkv, o, gate_up and the head
  Buffer<float> mlp;           // input of down
  Buffer<float> y;             // output of qkv or gate_up
  Buffer<float> pairs;         // (T, widest): input of weights in bfloat16
  const size_t padded_tokens;  // the last tile may be padded beyond the tokens
  const std::vector<int> group_sizes;
  Buffer<int8_t> codes;  // of the activations, for each group size
  Buffer<float> scales;
  Buffer<int32_t> starts;
  const size_t panel_stride;
  Buffer<uint8_t> panels;
  const size_t product_stride;
  Buffer<float> products;
  const size_t float_sums_stride;
  Buffer<float> float_sums;
  const size_t scratch_stride;
  Buffer<float> scratch;
};

Model::Model(const ModelShape& shape, const Kernels& kernels, int threads)
    : shape_(shape), kernels_(kernels), shares_(threads), pool_(threads) {}

Model::~Model() = default;

void Model::forward(const Batch& batch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (workspace_ == nullptr || workspace_->tokens < batch.tokens) {
    const bool is_bfloat16 = has(WeightKind::kBfloat16);
    // In steps of 64, so that a batch that grows by single tokens rarely allocates.
    workspace_ = std::make_unique<Workspace>(shape_, kernels_, group_sizes(), reads_mlp(),
                                             is_bfloat16 || has(WeightKind::kHalf) || has(WeightKind::kFloat),
                                             is_bfloat16, round_up(batch.tokens, 64), pool_.size());
  }
  auto body = [&](int thread) { compute(batch, thread); };
  pool_.run(body);
}

// The group sizes of the integer weights.
std::vector<int> Model::group_sizes() const {
  std::vector<int> used;
  const auto is_used = [&](int G) {
    if (uses_group(head_, G)) return true;
    for (const Layer& layer : layers_) {
      if (uses_group(layer.qkv, G) || uses_group(layer.o, G) || uses_group(layer.gate_up, G) ||
          uses_group(layer.down, G)) {
        return true;
      }
    }
    return false;
  };
  for (const int G : kGroupSizes) {
    if (is_used(G)) used.push_back(G);
  }
  return used;
}

// Whether any layer has a down projection with binary16 or binary32 weights, which takes float inputs, not codes.
bool Model::reads_mlp() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return uses_kind(layer.down, WeightKind::kHalf) || uses_kind(layer.down, WeightKind::kFloat);
  });
}

// Whether any linear layer's weights are of that kind.
bool Model::has(WeightKind kind) const {
  return uses_kind(head_, kind) || std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
           return uses_kind(layer.qkv, kind) || uses_kind(layer.o, kind) || uses_kind(layer.gate_up, kind) ||
                  uses_kind(layer.down, kind);
         });
}

// All threads run this; between two barriers a thread writes only memory that no other thread uses. The inputs of a
// linear layer are prepared jointly for a batch. For a single token every thread prepares its own copy, which takes no
// longer than a barrier.
void Model::compute(const Batch& batch, int thread) {
  Workspace& w = *workspace_;
  const int T = batch.tokens;
  const Range own = share(T, thread, pool_.size());
  for (int t = own.first; t < own.last; ++t) {
    float* h = w.h.data() + static_cast<size_t>(t) * w.hidden_stride;
    const int32_t id = batch.token_ids[t];
    if (id >= 0) {
      kernels_.embed(embedding_, id, shape_.embedding_scale, h);
    } else {
      const size_t row = static_cast<size_t>(-1 - id);
      std::memcpy(h, batch.embeddings + row * shape_.hidden, static_cast<size_t>(shape_.hidden) * sizeof(float));
    }
  }
  pool_.barrier();
  for (int index = 0; index < layers(); ++index) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    prepare_normed(layer.attention_norm, layer.qkv, nullptr, T, 1.0f, thread);
    if (thread == 0) next_head_.store(0, std::memory_order_relaxed), next_unit_.store(0, std::memory_order_relaxed);
    apply(layer.qkv, own_row(w.x.data(), w.hidden_stride, T, thread), w.hidden_stride, T, w.y.data(), w.qkv_stride,
          false, thread);
    pool_.barrier();
    attend(batch, index, thread);
    pool_.barrier();
    prepare_rows(layer.o, w.x.data(), w.hidden_stride, T, thread);
    apply(layer.o, w.x.data(), w.hidden_stride, T, w.h.data(), w.hidden_stride, true, thread);
    pool_.barrier();
    prepare_normed(layer.mlp_norm, layer.gate_up, nullptr, T, 1.0f, thread);
    apply(layer.gate_up, own_row(w.x.data(), w.hidden_stride, T, thread), w.hidden_stride, T, w.y.data(),
          w.gate_up_stride, false, thread);
    pool_.barrier();
    prepare_silu(layer.down, T, thread);
    apply(layer.down, own_row(w.mlp.data(), w.mlp_stride, T, thread), w.mlp_stride, T, w.h.data(), w.hidden_stride,
          true, thread);
    pool_.barrier();
  }
  if (batch.wanted_count == 0) return;
  if (batch.hidden != nullptr) {
    const Range rows = share(batch.wanted_count, thread, pool_.size());
    for (int i = rows.first; i < rows.last; ++i) {
      const float* h = w.h.data() + static_cast<size_t>(batch.wanted[i]) * w.hidden_stride;
      float* out = batch.hidden + static_cast<size_t>(i) * shape_.hidden;
      kernels_.rms_norm(h, norm_, shape_.hidden, shape_.eps, 1.0f, out);
    }
    return;
  }
  prepare_normed(norm_, head_, batch.wanted, batch.wanted_count, shape_.logit_scale, thread);
  apply(head_, own_row(w.x.data(), w.hidden_stride, batch.wanted_count, thread), w.hidden_stride, batch.wanted_count,
        batch.logits, shape_.vocabulary, false, thread);
}

// The row in which this thread prepares inputs: for a single token every thread has its own.
float* Model::own_row(float* rows, int stride, int tokens, int thread) {
  return tokens > 1 ? rows : rows + static_cast<size_t>(thread) * static_cast<size_t>(stride);
}

// x = the normed hidden states of the tokens (those at `places`, or all), prepared as input of `next`.
void Model::prepare_normed(const float* norm, const Linear& next, const int32_t* places, int tokens, float scale,
                           int thread) {
  Workspace& w = *workspace_;
  const Range own = tokens > 1 ? share(tokens, thread, pool_.size()) : Range{0, 1};
  for (int t = own.first; t < own.last; ++t) {
    const size_t place = places == nullptr ? t : places[t];
    float* x = own_row(w.x.data(), w.hidden_stride, tokens, thread) + static_cast<size_t>(t) * w.hidden_stride;
    kernels_.rms_norm(w.h.data() + place * w.hidden_stride, norm, shape_.hidden, shape_.eps, scale, x);
    prepare_slice(next, x, tokens, t, 0, shape_.hidden, thread);
  }
  if (tokens > 1) pool_.barrier();
}

void Model::prepare_rows(const Linear& next, const float* x, size_t stride, int tokens, int thread) {
  for_slices(columns_of(next), tokens, thread,
             [&](int t, int first, int last) { prepare_slice(next, x + t * stride, tokens, t, first, last, thread); });
}

void Model::prepare_silu(const Linear& down, int tokens, int thread) {
  Workspace& w = *workspace_;
  float* rows = own_row(w.mlp.data(), w.mlp_stride, w.keeps_mlp ? tokens : 1, thread);
  for_slices(shape_.intermediate, tokens, thread, [&](int t, int first, int last) {
    const float* gate = w.y.data() + static_cast<size_t>(t) * w.gate_up_stride;
    float* x = rows + static_cast<size_t>(w.keeps_mlp ? t : 0) * w.mlp_stride;
    kernels_.silu_multiply(gate + first, gate + shape_.intermediate + first, last - first, x + first);
    prepare_slice(down, x, tokens, t, first, last, thread);
  });
}

// Calls body(token, first, last) for this thread's share of all tokens' inputs, cut at group borders, then waits for
// all threads. For a single token every thread processes all inputs.
template <class Body>
void Model::for_slices(int columns, int tokens, int thread, Body body) {
  const int slices = ceil_div(columns, kLargestGroup);
  const Range own = tokens > 1 ? share(tokens * slices, thread, pool_.size()) : Range{0, slices};
  for (int unit = own.first; unit < own.last;) {
    const int t = unit / slices, end = smaller(own.last, (t + 1) * slices);
    body(t, unit % slices * kLargestGroup, smaller(columns, (end - t * slices) * kLargestGroup));
    unit = end;
  }
  if (tokens > 1) pool_.barrier();
}

void Model::prepare_slice(const Linear& next, const float* x, int tokens, int token, int first, int last,
                          int thread) const {
  for (const int G : kGroupSizes) {
    if (uses_group(next, G))
      kernels_.quantize(x, first, last, G, activations(columns_of(next), G, tokens, thread), token);
  }
  if (uses_kind(next, WeightKind::kBfloat16)) {
    kernels_.prepare_pairs(x, first, last, float_inputs(x, 0, tokens, thread), token);
  }
}

// The inputs x (T, stride) and their pairs; for a single token every thread has its own copy.
FloatInputs Model::float_inputs(const float* x, size_t stride, int tokens, int thread) const {
  const size_t pair_stride = static_cast<size_t>(workspace_->widest);
  const size_t row = tokens > 1 ? 0 : static_cast<size_t>(thread);
  return {x, stride, workspace_->pairs.data() + row * pair_stride, pair_stride};
}

Activations Model::activations(int columns, int G, int tokens, int thread) const {
  const Workspace& w = *workspace_;
  const size_t slot_index =
      static_cast<size_t>(std::find(w.group_sizes.begin(), w.group_sizes.end(), G) - w.group_sizes.begin());
  const size_t row = slot_index * w.padded_tokens + static_cast<size_t>(tokens > 1 ? 0 : thread);
  const size_t slot = row * static_cast<size_t>(w.widest);
  const bool is_direct = tokens <= kDirectTokens;
  const int granule = tokens <= 4 ? 1 : 2;  // the widths in DirectWidths and GemmWidths
  return {w.codes.data() + slot,
          w.scales.data() + slot / kGroupSizes[0],
          w.starts.data() + slot / kGroupSizes[0],
          tokens,
          is_direct ? smaller(round_up(tokens, granule), kernels_.direct_width) : kernels_.gemm_width,
          granule,
          round_up(columns, kLargestGroup),
          ceil_div(columns, G)};
}

// out (T, N), or out += product * residual_scale. Every thread has its own range of output features, hence of the
// weights; a thread that has finished takes chunks of the others.
void Model::apply(const Linear& linear, const float* x, size_t x_stride, int tokens, float* out, size_t stride,
                  bool is_residual, int thread) {
  Workspace& w = *workspace_;
  for (const Weight& weight : linear) {
    const Output to{out, stride, weight.rows, is_residual, shape_.residual_scale};
    out += weight.rows;
    if (!weight.is_integer()) {
      const FloatInputs inputs = float_inputs(x, x_stride, tokens, thread);
      const size_t rows = (tokens > 1 ? kFloatChunkBytes : kChunkBytes) / weight.row_bytes();
      float* sums = w.float_sums.data() + w.float_sums_stride * thread;
      for_chunks(weight.rows, larger(8, smaller(kMostFloatRows, static_cast<int>(rows) / 8 * 8)), thread,
                 [&](int first, int last) { kernels_.linear_rows(weight, inputs, tokens, first, last, to, sums); });
      continue;
    }
    const Activations a = activations(weight.columns, weight.group_size, tokens, thread);
    const int blocks = ceil_div(weight.rows, kLanes);
    if (tokens <= kDirectTokens) {
      const int step = static_cast<int>((kChunkBytes + weight.block_bytes() - 1) / weight.block_bytes());
      for_chunks(blocks, step, thread,
                 [&](int first, int last) { kernels_.linear_direct(weight, a, first, last, to); });
    } else {
      uint8_t* panel = w.panels.data() + w.panel_stride * thread;
      float* products = w.products.data() + w.product_stride * thread;
      for_chunks(blocks, kernels_.gemm_blocks, thread,
                 [&](int first, int last) { kernels_.linear_panels(weight, a, first, last, to, panel, products); });
    }
  }
}

// Calls body(first, last) for the chunks of `step` of 0 .. count - 1 that this thread takes.
template <class Body>
void Model::for_chunks(int count, int step, int thread, Body body) {
  shares_.begin(thread);
  const int chunks = ceil_div(count, step);
  for (int chunk; (chunk = shares_.take(chunks, thread)) >= 0;) {
    body(chunk * step, smaller(count, (chunk + 1) * step));
  }
}

// A unit is a head of a sequence, or some of its queries; a free thread takes the next unit. The assignment does not
// change the order of any sum.
void Model::attend(const Batch& batch, int layer, int thread) {
  const int queries = shape_.heads / shape_.kv_heads, kv_heads = shape_.kv_heads;
  int most = 0;
  for (const Row& row : batch.rows) most = larger(most, row.count * queries);
  const int span = queries_per_unit(batch, most);
  const bool is_cut = span < most;
  if (is_cut) {
    const int heads = static_cast<int>(batch.rows.size()) * kv_heads;
    for (int head; (head = next_head_.fetch_add(1, std::memory_order_relaxed)) < heads;) {
      const Row& row = batch.rows[static_cast<size_t>(head / kv_heads)];
      kernels_.file_keys_and_values(attention_job(row, batch, layer, head % kv_heads, 1, thread));
    }
    pool_.barrier();
  }
  const int heads = is_cut || most >= kQueryLanesFrom ? 1 : heads_per_unit(batch);
  int unit = next_unit_.fetch_add(1, std::memory_order_relaxed), first = 0;
  for (const Row& row : batch.rows) {
    const int parts = ceil_div(row.count * queries, span), end = first + parts * ceil_div(kv_heads, heads);
    for (; unit < end; unit = next_unit_.fetch_add(1, std::memory_order_relaxed)) {
      const int head = (unit - first) / parts * heads;
      AttentionJob job = attention_job(row, batch, layer, head, smaller(heads, kv_heads - head), thread);
      const int part = parts - 1 - (unit - first) % parts;  // the queries with the most keys first
      job.first_query = part * span;
      job.end_query = smaller(job.first_query + span, row.count * queries);
      if (!is_cut) kernels_.file_keys_and_values(job);
      kernels_.attend(job);
    }
    first = end;
  }
}

// Long prompts are split so that threads finish at about the same time, and all sequences are split if there are fewer
// heads than threads.
int Model::queries_per_unit(const Batch& batch, int most) const {
  constexpr int kSpan = 4 * kLanes;  // of a prompt; whole vectors of queries
  const int heads = static_cast<int>(batch.rows.size()) * shape_.kv_heads;
  return heads < pool_.size() ? smaller(kSpan, ceil_div(most, ceil_div(pool_.size(), heads))) : kSpan;
}

// With few queries, adjacent heads form one unit, as many as leave two units for every thread.
int Model::heads_per_unit(const Batch& batch) const {
  const int heads = static_cast<int>(batch.rows.size()) * shape_.kv_heads;
  return larger(1, smaller(kMostHeads, heads / (2 * pool_.size())));
}

AttentionJob Model::attention_job(const Row& row, const Batch& batch, int layer, int head, int heads,
                                  int thread) const {
  const Workspace& w = *workspace_;
  const int D = shape_.head_dim, queries = shape_.heads / shape_.kv_heads;
  AttentionJob job{};
  job.cache = row.pool->head(row.table, layer, head);
  job.qkv = w.y.data() + static_cast<size_t>(row.first) * w.qkv_stride;
  job.qkv_stride = w.qkv_stride;
  job.query_offset = head * queries * D;
  job.key_offset = (shape_.heads + head) * D;
  job.value_offset = (shape_.heads + shape_.kv_heads + head) * D;
  job.heads = heads;
  job.queries = queries;
  job.head_dim = D;
  job.cos = batch.cos + static_cast<size_t>(row.first) * (D / 2);
  job.sin = batch.sin + static_cast<size_t>(row.first) * (D / 2);
  if (batch.sink_cos != nullptr) {
    job.sink_cos = batch.sink_cos + static_cast<size_t>(row.first) * (D / 2);
    job.sink_sin = batch.sink_sin + static_cast<size_t>(row.first) * (D / 2);
    job.sink_blocks = shape_.sink_blocks;
    job.window_blocks = shape_.window_blocks;
  }
  job.first_position = row.length;
  job.tokens = row.count;
  job.query_scale = shape_.query_scale;
  job.out = w.x.data() + static_cast<size_t>(row.first) * w.hidden_stride + job.query_offset;
  job.out_stride = w.hidden_stride;
  job.scratch = w.scratch.data() + w.scratch_stride * thread;
  return job;
}
