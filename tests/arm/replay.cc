// Does again what recorder.py wrote down, with every set of kernels that runs
// here, and compares the bits; before that it tries what csrc/system.h promises
// of memory.
//
//   replay FILE   prints the names of the sets, then for each how much was
//   compared; 1 at the first difference
//
// The file is words of 8 bytes: a whole number, a double, or a list, which is a
// count and so many words; or an array, which is a count of bytes and these,
// padded with zeros. The thread that asks flushes subnormal numbers and rounds
// upwards, as other code in a process might have left it:
// csrc/float_environment.h has to see to that.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "kv_pool.h"
#include "model.h"
#include "sampling.h"
#include "system.h"

namespace {

// As recorder.py numbers them, and it says what they hold.
enum Record : int64_t { kWeight, kModel, kEmbedding, kLayer, kHead, kPool, kCopy, kForward, kDraw };

using Numbers = std::vector<int64_t>;

class Reader {
 public:
  explicit Reader(const std::vector<uint64_t>& words) : words_(words) {}

  bool is_at_end() const { return place_ == words_.size(); }
  int64_t number() { return static_cast<int64_t>(next()); }
  int count() { return static_cast<int>(number()); }
  double real() {
    const uint64_t word = next();
    double value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
  Numbers list() {
    Numbers numbers(next());
    for (int64_t& each : numbers) each = number();
    return numbers;
  }
  // The array's own place in the file.
  template <class T>
  const T* array(size_t* size = nullptr) {
    const size_t bytes = next(), words = (bytes + 7) / 8;
    if (words > words_.size() - place_) throw std::runtime_error("the file ends inside an array");
    const T* first = reinterpret_cast<const T*>(words_.data() + place_);
    place_ += words;
    if (size) *size = bytes / sizeof(T);
    return first;
  }

 private:
  uint64_t next() {
    if (is_at_end()) throw std::runtime_error("the file ends inside a record");
    return words_[place_++];
  }

  const std::vector<uint64_t>& words_;
  size_t place_ = 0;
};

bool is_same(float one, float other) {  // which bits a NaN has is not defined
  return std::memcmp(&one, &other, sizeof one) == 0 || (one != one && other != other);
}

class Replay {
 public:
  Replay(const std::vector<uint64_t>& words, const Kernels& kernels) : from_(words), kernels_(kernels) {}

  void run() {
    for (; !from_.is_at_end(); ++record_) step(from_.number());
    std::printf("%s: %zu numbers and %zu draws are the same\n", kernels_.name, numbers_, draws_);
  }

 private:
  void step(int64_t kind) {
    switch (kind) {
      case kWeight:
        return make_weight();
      case kModel:
        return make_model();
      case kEmbedding:
        return set_embedding();
      case kLayer:
        return add_layer();
      case kHead:
        return set_head();
      case kPool:
        return make_pool();
      case kCopy:
        return copy_block();
      case kForward:
        return forward();
      case kDraw:
        return draw_token();
      default:
        fail("is of no known kind");
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(std::string(kernels_.name) + ": record " + std::to_string(record_) + " " + what);
  }

  void make_weight() {
    Weight weight{};
    weight.kind = static_cast<WeightKind>(from_.number());
    weight.rows = from_.count();
    weight.columns = from_.count();
    weight.group_size = from_.count();
    weight.has_half_scales = from_.number() != 0;
    weight.data = from_.array<uint8_t>();
    weights_.push_back(weight);
  }

  void make_model() {
    const int threads = from_.count();
    ModelShape shape{};
    shape.hidden = from_.count();
    shape.heads = from_.count();
    shape.kv_heads = from_.count();
    shape.head_dim = shape.hidden / shape.heads;
    shape.intermediate = from_.count();
    shape.vocabulary = from_.count();
    shape.sink_blocks = from_.count();
    shape.window_blocks = from_.count();
    for (float* scale :
         {&shape.eps, &shape.embedding_scale, &shape.residual_scale, &shape.logit_scale, &shape.query_scale}) {
      *scale = static_cast<float>(from_.real());  // they were rounded when they were written
    }
    models_.push_back(std::make_unique<Model>(shape, kernels_, threads));
  }

  Model& model() { return *models_.at(static_cast<size_t>(from_.number())); }
  KvPool& pool(int64_t number) { return *pools_.at(static_cast<size_t>(number)); }
  const Weight& weight(int64_t number) const { return weights_.at(static_cast<size_t>(number)); }

  Linear linear() {
    Linear found;
    for (const int64_t number : from_.list()) found.push_back(weight(number));
    return found;
  }

  void set_embedding() {
    Model& to = model();
    to.set_embedding(weight(from_.number()));
  }

  void add_layer() {
    Model& to = model();
    Layer layer{};
    layer.attention_norm = from_.array<float>();
    layer.qkv = linear();
    layer.o = linear();
    layer.mlp_norm = from_.array<float>();
    layer.gate_up = linear();
    layer.down = linear();
    to.add_layer(layer);
  }

  void set_head() {
    Model& to = model();
    const float* norm = from_.array<float>();
    to.set_head(norm, linear());
  }

  void make_pool() {
    const auto kind = static_cast<CacheKind>(from_.number());
    const int layers = from_.count(), kv_heads = from_.count(), head_dim = from_.count(), blocks = from_.count();
    pools_.push_back(std::make_unique<KvPool>(kind, layers, kv_heads, head_dim, blocks));
  }

  void copy_block() {
    KvPool& its = pool(from_.number());
    const int from = from_.count(), to = from_.count();
    its.copy(from, to);
  }

  void forward() {
    Model& its = model();
    const bool is_hidden = from_.number() != 0;
    const Numbers pools = from_.list(), lengths = from_.list(), counts = from_.list();
    Batch batch{};
    std::vector<std::vector<int32_t>> tables;
    for (size_t i = 0; i < pools.size(); ++i) {
      size_t size;
      const int32_t* table = from_.array<int32_t>(&size);
      const int length = static_cast<int>(lengths[i]), count = static_cast<int>(counts[i]);
      const int used = ceil_div(length + count, kLanes);
      if (static_cast<size_t>(used) > size) fail("has a table with fewer blocks than its tokens take");
      tables.emplace_back(table, table + used);
      tables.back().push_back(table[used - 1]);  // one more, as kernels.h wants it
      batch.rows.push_back({&pool(pools[i]), nullptr, length, batch.tokens, count});
      batch.tokens += count;
    }
    for (size_t i = 0; i < tables.size(); ++i) batch.rows[i].table = tables[i].data();
    batch.token_ids = from_.array<int32_t>();
    batch.cos = from_.array<float>();
    batch.sin = from_.array<float>();
    size_t wanted, size;
    batch.sink_cos = from_.array<float>(&size);
    batch.sink_sin = from_.array<float>();
    if (size == 0) batch.sink_cos = batch.sink_sin = nullptr;
    batch.embeddings = from_.array<float>();
    batch.wanted = from_.array<int32_t>(&wanted);
    batch.wanted_count = static_cast<int>(wanted);
    const float* expected = from_.array<float>(&size);
    std::vector<float> found(size);
    (is_hidden ? batch.hidden : batch.logits) = found.data();
    its.forward(batch);
    for (size_t i = 0; i < size; ++i) {
      if (!is_same(found[i], expected[i])) {
        fail("gives " + std::to_string(found[i]) + " instead of " + std::to_string(expected[i]) + " at place " +
             std::to_string(i) + " of " + std::to_string(size));
      }
    }
    numbers_ += size;
  }

  void draw_token() {
    size_t size;
    const float* before = from_.array<float>(&size);
    std::vector<float> scores(before, before + size);
    Warpers warpers{};
    warpers.temperature = static_cast<float>(from_.real());
    warpers.top_k = from_.number();
    warpers.top_p = from_.real();
    warpers.min_p = from_.real();
    const auto seed = static_cast<uint64_t>(from_.number()), choice = static_cast<uint64_t>(from_.number());
    const auto position = static_cast<uint64_t>(from_.number());
    const int64_t found = draw(kernels_, scores.data(), size, warpers, uniform53(seed, choice, position));
    const int64_t expected = from_.number();
    if (found != expected) fail("draws " + std::to_string(found) + " instead of " + std::to_string(expected));
    ++draws_;
  }

  Reader from_;
  const Kernels& kernels_;
  std::vector<Weight> weights_;
  std::vector<std::unique_ptr<KvPool>> pools_;
  std::vector<std::unique_ptr<Model>> models_;
  size_t record_ = 0, numbers_ = 0, draws_ = 0;
};

std::vector<uint64_t> read_words(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
  std::vector<uint64_t> words(static_cast<size_t>(file.tellg()) / sizeof(uint64_t));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(words.data()), static_cast<std::streamsize>(words.size() * sizeof(uint64_t)));
  return words;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("memory: ") + what);
}

bool is_all(const uint8_t* first, size_t bytes, uint8_t value) {
  for (size_t i = 0; i < bytes; ++i) {
    if (first[i] != value) return false;
  }
  return true;
}

void try_memory() {
  for (const size_t bytes : {size_t{1}, size_t{1} << 16, (size_t{5} << 20) + 3}) {
    void* data = allocate_memory(bytes);
    require(reinterpret_cast<uintptr_t>(data) % 64 == 0, "it does not begin with a cache line");
    std::memset(data, 1, bytes);
    free_memory(data);
  }
  constexpr size_t kBytes = size_t{64} << 20, kBorder = 100, kPart = kBytes / 2 + 1;
  uint8_t* pages = static_cast<uint8_t*>(reserve_pages(kBytes));
  require(is_all(pages, kBytes, 0), "reserved pages are not zero");
  for (const uint8_t value : {uint8_t{1}, uint8_t{2}}) {
    std::memset(pages, value, kBytes);
    require(is_all(pages, kBytes, value), "a page that was written holds something else");
    discard_pages(pages + kBorder, kPart);
    require(is_all(pages, kBorder, value), "what lies before discarded pages has changed");
    require(is_all(pages + kBorder + kPart, kBytes - kBorder - kPart, value), "what lies behind them has changed");
  }
  unreserve_pages(pages, kBytes);
}

void spoil_float_environment() {
#if defined(__aarch64__)
  constexpr uint64_t kFlushToZero = 1u << 24, kRoundUp = 1u << 22;
  __asm__ volatile("msr fpcr, %0" ::"r"(kFlushToZero | kRoundUp) : "memory");
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: replay FILE\n");
    return 2;
  }
  try {
    try_memory();
    const std::vector<uint64_t> words = read_words(arguments[1]);
    const std::vector<std::string> names = runnable_isas();
    for (const std::string& name : names) std::printf("%s ", name.c_str());
    std::printf("\n");
    spoil_float_environment();
    for (const std::string& name : names) Replay(words, *find_kernels(name)).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
