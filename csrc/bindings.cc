// The Python bindings: check types, shapes and sizes, release the GIL and call. The model's wrapper keeps alive what
// Python passes by reference (the weights' bytes, the norms).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>

#include "isa.h"
#include "kv_pool.h"
#include "machine.h"
#include "model.h"
#include "packing.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableVector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

// A weight and the array that holds its bytes.
struct OwnedWeight {
  Weight weight;
  Bytes bytes;
};

WeightKind kind_of(const std::string& name) {
  if (name == "int4") return WeightKind::kInt4;
  if (name == "int8") return WeightKind::kInt8;
  if (name == "float16") return WeightKind::kHalf;
  if (name == "bfloat16") return WeightKind::kBfloat16;
  if (name == "float32") return WeightKind::kFloat;
  throw nb::value_error("kind must be int4, int8, float16, bfloat16 or float32");
}

Weight described(const std::string& kind, int rows, int columns, int group_size, bool has_half_scales) {
  const Weight weight{kind_of(kind), nullptr, rows, columns, group_size, has_half_scales};
  require(rows > 0 && columns > 0, "a weight has at least one row and one column");
  if (weight.is_integer()) {
    require(group_size == 32 || group_size == 64 || group_size == 128, "group_size must be 32, 64 or 128");
  }
  return weight;
}

size_t bytes_of(const Weight& weight) {
  if (weight.is_integer()) return weight.block_bytes() * static_cast<size_t>(ceil_div(weight.rows, kLanes));
  return static_cast<size_t>(weight.rows) * weight.columns * (weight.kind == WeightKind::kFloat ? 4 : 2);
}

size_t packed_bytes(const std::string& kind, int rows, int columns, int group_size, bool has_half_scales) {
  return bytes_of(described(kind, rows, columns, group_size, has_half_scales));
}

void make_weight(OwnedWeight* self, const std::string& kind, Bytes bytes, int rows, int columns, int group_size,
                 bool has_half_scales) {
  Weight weight = described(kind, rows, columns, group_size, has_half_scales);
  require(bytes.size() == bytes_of(weight), "the bytes are not as many as the weight takes");
  weight.data = bytes.data();
  new (self) OwnedWeight{weight, bytes};
}

// Python passes scales as bytes (rows, groups * 2 or 4).
void pack_sources(const std::string& kind, int columns, int group_size, bool has_half_scales,
                  const std::vector<std::tuple<ByteRows, ByteRows>>& sources, WritableBytes out) {
  int rows = 0;
  for (const auto& [codes, scales] : sources) rows += static_cast<int>(codes.shape(0));
  const Weight weight = described(kind, rows, columns, group_size, has_half_scales);
  require(weight.is_integer(), "only int4 and int8 weights are packed");
  const int bits = weight.kind == WeightKind::kInt4 ? 4 : 8;
  const size_t row_bytes = static_cast<size_t>(ceil_div(columns, 32 / bits)) * 4;
  std::vector<StoredRows> stored;
  for (const auto& [codes, scales] : sources) {
    require(codes.shape(1) == row_bytes, "a row of codes is not as long as its columns take");
    require(scales.shape(0) == codes.shape(0), "codes and scales differ in rows");
    require(scales.shape(1) == static_cast<size_t>(weight.groups()) * (has_half_scales ? 2 : 4),
            "a row of scales is not as long as its groups take");
    stored.push_back({codes.data(), row_bytes, scales.data(), static_cast<int>(codes.shape(0))});
  }
  require(out.size() == bytes_of(weight), "out is not as large as the packed weight");
  nb::gil_scoped_release release;
  pack(weight, stored, out.data());
}

// The drawn token's id; -1 if the best score is infinite. Overwrites `scores`.
int64_t draw_token(const std::string& isa, WritableVector scores, double temperature, int64_t top_k, double top_p,
                   double min_p, uint64_t seed, uint64_t choice, uint64_t position) {
  require(scores.size() >= 1 && scores.size() < (size_t{1} << 31), "scores are 1 or more numbers");
  require(static_cast<float>(temperature) > 0.0f && top_k >= 0, "temperature is above 0, top_k 0 or more");
  require(top_p >= 0.0 && top_p <= 1.0 && min_p >= 0.0 && min_p <= 1.0, "top_p and min_p are 0 to 1");
  const Kernels* kernels = find_kernels(isa);
  require(kernels != nullptr, "this machine cannot run that instruction set");
  const Warpers warpers{static_cast<float>(temperature), top_k, top_p, min_p};
  nb::gil_scoped_release release;
  return draw(*kernels, scores.data(), scores.size(), warpers, uniform53(seed, choice, position));
}

CacheKind kind_of_cache(const std::string& dtype) {
  if (dtype == "int8") return CacheKind::kInt8;
  if (dtype == "bfloat16") return CacheKind::kBfloat16;
  throw nb::value_error("the dtype of keys and values must be int8 or bfloat16");
}

// A pool, and marks for checking tables without changing them.
struct PythonPool {
  PythonPool(int layers, int kv_heads, int head_dim, int blocks, const std::string& dtype)
      : pool(kind_of_cache(dtype), checked(layers, "layers must be 1 to 16777216"),
             checked(kv_heads, "kv_heads must be 1 to 16777216"), checked(head_dim, "head_dim must be 1 to 16777216"),
             checked(blocks, "blocks must be 1 to 16777216")),
        is_written(static_cast<size_t>(blocks), false) {}

  static int checked(int count, const char* message) {
    require(count >= 1 && count <= (1 << 24), message);
    return count;
  }

  void require_block(int64_t block) const {
    require(block >= 0 && block < pool.blocks(), "a block is none of the pool's");
  }

  KvPool pool;
  std::vector<bool> is_written;
};

// The table of one sequence, copied so that it cannot change during a step, with the extra last entry that kernels.h
// requires.
struct CheckedTable {
  CheckedTable(PythonPool& its_pool, const Integers& table, int length, int count) : pool(its_pool) {
    require(length >= 0 && length < (1 << 28) && count > 0 && count < (1 << 20),
            "a sequence gets 1 or more tokens at a time, and has a length that can be counted");
    first_written = static_cast<size_t>(length / kLanes);
    const size_t used = static_cast<size_t>(ceil_div(length + count, kLanes));
    require(table.size() >= used, "a table has fewer blocks than its tokens take");
    blocks.assign(table.data(), table.data() + used);
    for (const int32_t block : blocks) pool.require_block(block);
    blocks.push_back(blocks.back());
  }

  size_t used() const { return blocks.size() - 1; }

  PythonPool& pool;
  std::vector<int32_t> blocks;
  size_t first_written;  // new tokens are written to this block and those after it
};

// A block that a row writes must not occur in another row, nor twice in its own table.
void require_own_blocks(const std::vector<CheckedTable>& tables) {
  bool is_shared = false;
  for (const CheckedTable& table : tables) {
    for (size_t i = table.first_written; i < table.used(); ++i) {
      is_shared = is_shared || table.pool.is_written[static_cast<size_t>(table.blocks[i])];
      table.pool.is_written[static_cast<size_t>(table.blocks[i])] = true;
    }
  }
  for (const CheckedTable& table : tables) {
    for (size_t i = 0; i < table.first_written; ++i) {
      is_shared = is_shared || table.pool.is_written[static_cast<size_t>(table.blocks[i])];
    }
  }
  for (const CheckedTable& table : tables) {
    for (size_t i = table.first_written; i < table.used(); ++i) {
      table.pool.is_written[static_cast<size_t>(table.blocks[i])] = false;
    }
  }
  require(!is_shared, "a block that new tokens go to is twice in the batch");
}

// The arrays of a step as Python passes them, checked against each other here; the model checks them with its shape.
// Indices and tables are copied, so that they cannot change during the step.
class PythonBatch {
 public:
  PythonBatch(const std::vector<PythonPool*>& pools, const std::vector<Integers>& tables,
              const std::vector<int>& lengths, const std::vector<int>& counts, const Integers& token_ids, Matrix cos,
              Matrix sin, const Integers& wanted, WritableMatrix out, bool is_hidden, std::optional<Matrix> sink_cos,
              std::optional<Matrix> sink_sin, std::optional<Matrix> embeddings)
      : is_hidden_(is_hidden),
        token_ids_(token_ids.data(), token_ids.data() + token_ids.size()),
        wanted_(wanted.data(), wanted.data() + wanted.size()),
        cos_(std::move(cos)),
        sin_(std::move(sin)),
        sink_cos_(std::move(sink_cos)),
        sink_sin_(std::move(sink_sin)),
        embeddings_(std::move(embeddings)),
        out_(std::move(out)) {
    require(pools.size() == counts.size() && tables.size() == counts.size() && lengths.size() == counts.size() &&
                !counts.empty(),
            "a batch has one pool, table, length and count per sequence, at least one sequence");
    tables_.reserve(counts.size());
    int64_t tokens = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      require(pools[i] != nullptr, "None is no pool");
      pools_.push_back(nb::find(*pools[i]));
      tables_.emplace_back(*pools[i], tables[i], lengths[i], counts[i]);
      batch_.rows.push_back(
          {&pools[i]->pool, tables_.back().blocks.data(), lengths[i], static_cast<int>(tokens), counts[i]});
      tokens += counts[i];
    }
    require_own_blocks(tables_);
    require(tokens < (1 << 20), "a batch has too many tokens");
    const size_t T = static_cast<size_t>(tokens);
    require(token_ids_.size() == T, "token_ids are not as many as the counts say");
    require(cos_.shape(0) == T && have_same_shape(cos_, sin_), "cos and sin are (tokens, head_dim / 2)");
    require(sink_cos_.has_value() == sink_sin_.has_value() &&
                (!sink_cos_ || (have_same_shape(*sink_cos_, cos_) && have_same_shape(*sink_sin_, cos_))),
            "sink_cos and sink_sin come together and are as large as cos and sin");
    require(wanted_.size() <= T && out_.shape(0) == wanted_.size(),
            "out is (wanted, vocabulary or hidden), wanted at most as many as tokens");
    for (const int32_t place : wanted_) require(place >= 0 && place < tokens, "a wanted place is outside the batch");
    batch_.token_ids = token_ids_.data();
    batch_.tokens = static_cast<int>(tokens);
    batch_.cos = cos_.data();
    batch_.sin = sin_.data();
    batch_.sink_cos = sink_cos_ ? sink_cos_->data() : nullptr;
    batch_.sink_sin = sink_sin_ ? sink_sin_->data() : nullptr;
    batch_.embeddings = embeddings_ ? embeddings_->data() : nullptr;
    batch_.wanted = wanted_.data();
    batch_.wanted_count = static_cast<int>(wanted_.size());
    batch_.logits = is_hidden ? nullptr : out_.data();
    batch_.hidden = is_hidden ? out_.data() : nullptr;
  }
  PythonBatch(const PythonBatch&) = delete;
  PythonBatch& operator=(const PythonBatch&) = delete;

  // The batch, for a model that it fits.
  const Batch& checked(const ModelShape& shape, int layers) const {
    for (const Row& row : batch_.rows) {
      require(row.pool->fits(layers, shape.kv_heads, shape.head_dim), "a sequence belongs to another model");
    }
    require(cos_.shape(1) == static_cast<size_t>(shape.head_dim / 2), "cos and sin are (tokens, head_dim / 2)");
    require(sink_cos_.has_value() == (shape.window_blocks > 0),
            "sink_cos and sink_sin are for a model with a sliding window, and it needs them");
    require(out_.shape(1) == static_cast<size_t>(is_hidden_ ? shape.hidden : shape.vocabulary),
            "out is (wanted, vocabulary or hidden), wanted at most as many as tokens");
    require(!embeddings_ || embeddings_->shape(1) == static_cast<size_t>(shape.hidden),
            "embeddings are (positions, hidden)");
    const int64_t positions = embeddings_ ? static_cast<int64_t>(embeddings_->shape(0)) : 0;
    for (const int32_t id : token_ids_) {
      require(id >= -positions && id < shape.vocabulary, "a token id is no word and no row of the embeddings");
    }
    return batch_;
  }

 private:
  static bool have_same_shape(const Matrix& one, const Matrix& other) {
    return one.shape(0) == other.shape(0) && one.shape(1) == other.shape(1);
  }

  const bool is_hidden_;
  std::vector<nb::object> pools_;
  std::vector<CheckedTable> tables_;
  const std::vector<int32_t> token_ids_, wanted_;
  const Matrix cos_, sin_;
  const std::optional<Matrix> sink_cos_, sink_sin_, embeddings_;
  const WritableMatrix out_;
  Batch batch_{};
};

const Kernels& checked_kernels(const std::string& isa) {
  const Kernels* found = find_kernels(isa);
  require(found != nullptr, "this machine cannot run that instruction set");
  return *found;
}

int checked_threads(int threads) {
  require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
  return threads;
}

size_t checked_memory(int64_t bytes) {
  require(bytes >= 1 && bytes <= (int64_t{1} << 40), "memory_bytes must be 1 to 2^40");
  return static_cast<size_t>(bytes);
}

// The model, and what keeps its weights alive.
class PythonModel {
 public:
  PythonModel(const std::string& isa, int threads, int hidden, int heads, int kv_heads, int intermediate,
              int vocabulary, double eps, double embedding_scale, double residual_scale, double logit_scale,
              double query_scale, int sink_blocks, int window_blocks)
      : model_(checked(hidden, heads, kv_heads, intermediate, vocabulary, eps, embedding_scale, residual_scale,
                       logit_scale, query_scale, sink_blocks, window_blocks),
               checked_kernels(isa), checked_threads(threads)) {}

  void set_embedding(const OwnedWeight& embedding) {
    require(embedding.weight.rows == shape().vocabulary && embedding.weight.columns == shape().hidden,
            "the embedding is not (vocabulary, hidden)");
    keep(embedding);
    model_.set_embedding(embedding.weight);
    has_embedding_ = true;
  }

  void add_layer(Vector attention_norm, const std::vector<OwnedWeight>& qkv, const std::vector<OwnedWeight>& o,
                 Vector mlp_norm, const std::vector<OwnedWeight>& gate_up, const std::vector<OwnedWeight>& down) {
    const int hidden = shape().hidden;
    Layer layer;
    layer.attention_norm = norm(attention_norm);
    layer.qkv = linear(qkv, (shape().heads + 2 * shape().kv_heads) * shape().head_dim, hidden);
    layer.o = linear(o, hidden, hidden);
    layer.mlp_norm = norm(mlp_norm);
    layer.gate_up = linear(gate_up, 2 * shape().intermediate, hidden);
    layer.down = linear(down, hidden, shape().intermediate);
    model_.add_layer(layer);
  }

  void set_head(Vector last_norm, const std::vector<OwnedWeight>& head) {
    model_.set_head(norm(last_norm), linear(head, shape().vocabulary, shape().hidden));
    has_head_ = true;
  }

  void forward(const PythonBatch& batch) {
    require(has_embedding_ && has_head_, "the model has no embedding or no head yet");
    const Batch& checked = batch.checked(shape(), model_.layers());
    nb::gil_scoped_release release;
    model_.forward(checked);
  }

  int threads() const { return model_.threads(); }

 private:
  static ModelShape checked(int hidden, int heads, int kv_heads, int intermediate, int vocabulary, double eps,
                            double embedding_scale, double residual_scale, double logit_scale, double query_scale,
                            int sink_blocks, int window_blocks) {
    constexpr int kMost = 1 << 22;
    require(hidden > 0 && hidden <= kMost && intermediate > 0 && intermediate <= kMost && vocabulary > 0 &&
                vocabulary <= kMost,
            "hidden, intermediate and vocabulary must be 1 to 4194304");
    require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && hidden % heads == 0 && hidden / heads % 2 == 0,
            "heads must divide hidden, kv_heads heads, and a head be even");
    require((sink_blocks == 0 && window_blocks == 0) ||
                (sink_blocks > 0 && window_blocks > 0 && sink_blocks <= kMost && window_blocks <= kMost),
            "a sliding window has blocks of sinks and of the window, at most 4194304; without one both are 0");
    return {hidden,
            heads,
            kv_heads,
            hidden / heads,
            intermediate,
            vocabulary,
            static_cast<float>(eps),
            static_cast<float>(embedding_scale),
            static_cast<float>(residual_scale),
            static_cast<float>(logit_scale),
            static_cast<float>(query_scale),
            sink_blocks,
            window_blocks};
  }

  const ModelShape& shape() const { return model_.shape(); }

  void keep(const OwnedWeight& weight) { owners_.push_back(weight.bytes); }

  const float* norm(const Vector& weight) {
    require(weight.size() == static_cast<size_t>(shape().hidden), "a norm's weight is (hidden)");
    norms_.push_back(weight);
    return weight.data();
  }

  Linear linear(const std::vector<OwnedWeight>& parts, int rows, int columns) {
    Linear weights;
    int found = 0;
    for (const OwnedWeight& part : parts) {
      require(part.weight.columns == columns, "a weight has another number of columns than its input");
      weights.push_back(part.weight);
      found += part.weight.rows;
      keep(part);
    }
    require(found == rows, "a linear layer's weights have another number of rows than its output");
    return weights;
  }

  std::vector<Bytes> owners_;
  std::vector<Vector> norms_;
  bool has_embedding_ = false, has_head_ = false;
  Model model_;  // last member: it is destroyed first, with its threads
};

}  // namespace

NB_MODULE(_native, m) {
  // A program may end while a model exists; nanobind must not report that as a leak.
  nb::set_leak_warnings(false);
  m.doc() = "The native engine; minicpm.native and minicpm.engine.backends.native are its users.";
  m.def("runnable_isas", &runnable_isas);
  m.def("packed_bytes", &packed_bytes, "kind"_a, "rows"_a, "columns"_a, "group_size"_a, "has_half_scales"_a);
  m.def("pack", &pack_sources, "kind"_a, "columns"_a, "group_size"_a, "has_half_scales"_a, "sources"_a, "out"_a);
  m.def("uniform53", &uniform53, "seed"_a, "choice"_a, "position"_a);
  m.def("draw", &draw_token, "isa"_a, "scores"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a,
        "choice"_a, "position"_a);
  nb::class_<OwnedWeight>(m, "Weight")
      .def("__init__", &make_weight, "kind"_a, "data"_a, "rows"_a, "columns"_a, "group_size"_a = 0,
           "has_half_scales"_a = false);
  nb::class_<PythonPool>(m, "KvPool")
      .def(nb::init<int, int, int, int, const std::string&>(), "layers"_a, "kv_heads"_a, "head_dim"_a, "blocks"_a,
           "dtype"_a = "int8")
      .def_prop_ro("blocks", [](const PythonPool& self) { return self.pool.blocks(); })
      .def(
          "copy",
          [](PythonPool& self, int from, int to) {
            self.require_block(from);
            self.require_block(to);
            require(from != to, "a block is copied into another one");
            nb::gil_scoped_release release;
            self.pool.copy(from, to);
          },
          "source"_a, "destination"_a)
      .def(
          "release",
          [](PythonPool& self, const std::vector<int32_t>& blocks) {
            for (const int32_t block : blocks) self.require_block(block);
            nb::gil_scoped_release release;
            self.pool.release(blocks);
          },
          "blocks"_a);
  nb::class_<PythonBatch>(m, "Batch")
      .def(nb::init<const std::vector<PythonPool*>&, const std::vector<Integers>&, const std::vector<int>&,
                    const std::vector<int>&, const Integers&, Matrix, Matrix, const Integers&, WritableMatrix, bool,
                    std::optional<Matrix>, std::optional<Matrix>, std::optional<Matrix>>(),
           nb::kw_only(), "pools"_a, "tables"_a, "lengths"_a, "counts"_a, "token_ids"_a, "cos"_a, "sin"_a, "wanted"_a,
           "out"_a, "is_hidden"_a = false, "sink_cos"_a = nb::none(), "sink_sin"_a = nb::none(),
           "embeddings"_a = nb::none());
  nb::class_<PythonModel>(m, "Model")
      .def(nb::init<const std::string&, int, int, int, int, int, int, double, double, double, double, double, int,
                    int>(),
           "isa"_a, "threads"_a, "hidden"_a, "heads"_a, "kv_heads"_a, "intermediate"_a, "vocabulary"_a, "eps"_a,
           "embedding_scale"_a, "residual_scale"_a, "logit_scale"_a, "query_scale"_a, "sink_blocks"_a = 0,
           "window_blocks"_a = 0)
      .def("set_embedding", &PythonModel::set_embedding, "weight"_a)
      .def("add_layer", &PythonModel::add_layer, "attention_norm"_a, "qkv"_a, "o"_a, "mlp_norm"_a, "gate_up"_a,
           "down"_a)
      .def("set_head", &PythonModel::set_head, "norm"_a, "weights"_a)
      .def("forward", &PythonModel::forward, "batch"_a)
      .def_prop_ro("threads", &PythonModel::threads);
  nb::class_<Machine>(m, "Machine")
      .def(
          "__init__",
          [](Machine* self, const std::string& isa, int threads, int64_t memory_bytes) {
            new (self) Machine(checked_kernels(isa), checked_threads(threads), checked_memory(memory_bytes));
          },
          "isa"_a, "threads"_a, "memory_bytes"_a)
      .def("read_bandwidth", &Machine::read_bandwidth, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "product_rate",
          [](Machine& self, double seconds) {
            require(seconds > 0 && seconds <= 60, "seconds must be above 0 and at most 60");
            const nb::gil_scoped_release release;
            return self.product_rate(seconds);
          },
          "seconds"_a)
      .def_prop_ro("threads", &Machine::threads);
}
