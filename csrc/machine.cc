#include "machine.h"

#include <chrono>

#include "system.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = 16 * sizeof(uint64_t);  // read_words reads multiples of it
constexpr int64_t kRounds = 1 << 14;              // between two readings of the clock: about 50 microseconds of AVX-512

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

Machine::Machine(const Kernels& kernels, int threads, size_t memory_bytes)
    : kernels_(kernels),
      bytes_((memory_bytes + kPiece - 1) / kPiece * kPiece),
      sums_(static_cast<size_t>(threads) * 8),
      pool_(threads) {}

Machine::~Machine() {
  if (words_ != nullptr) free_memory(words_);
}

double Machine::read_bandwidth() {
  if (words_ == nullptr) allocate();
  const size_t pieces = bytes_ / kPiece, threads = static_cast<size_t>(pool_.size());
  auto body = [&](int thread) {
    const size_t own = static_cast<size_t>(thread);
    const size_t first = pieces * own / threads, last = pieces * (own + 1) / threads;
    constexpr size_t kWords = kPiece / sizeof(uint64_t);
    sums_[own * 8] += kernels_.read_words(words_ + first * kWords, (last - first) * kWords);
  };
  const Clock::time_point start = Clock::now();
  pool_.run(body);
  return static_cast<double>(bytes_) / seconds_since(start);
}

double Machine::product_rate(double seconds) {
  std::vector<int64_t> products(static_cast<size_t>(pool_.size()));
  const Clock::time_point start = Clock::now();
  auto body = [&](int thread) {
    int32_t sink[kLanes];
    do {
      products[static_cast<size_t>(thread)] += kernels_.multiply_bytes(kRounds, sink);
    } while (seconds_since(start) < seconds);
  };
  pool_.run(body);
  const double elapsed = seconds_since(start);
  int64_t total = 0;
  for (const int64_t count : products) total += count;
  return static_cast<double>(total) / elapsed;
}

// Every page is written: a page that was never written is not backed by memory of its own.
void Machine::allocate() {
  words_ = static_cast<uint64_t*>(allocate_memory(bytes_));
  for (size_t i = 0; i < bytes_ / sizeof(uint64_t); ++i) words_[i] = i;
}
