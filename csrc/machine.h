// The two peaks that speeds are compared with: the read bandwidth of this machine's memory, and the rate of byte
// products of its processor. Both are measured with the engine's threads and kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "thread_pool.h"

class Machine {
 public:
  // Allocates `memory_bytes` at the first read; throws std::bad_alloc if there is no memory.
  Machine(const Kernels& kernels, int threads, size_t memory_bytes);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  int threads() const { return pool_.size(); }
  size_t memory_bytes() const { return bytes_; }

  // Bytes per second of reading the memory once; each thread reads its own contiguous part.
  double read_bandwidth();
  // Products of int4 and int8 numbers per second on all threads, measured for this long.
  double product_rate(double seconds);

 private:
  void allocate();

  const Kernels& kernels_;
  const size_t bytes_;
  uint64_t* words_ = nullptr;
  std::vector<uint64_t> sums_;  // of the words read, so that the compiler keeps the loads
  ThreadPool pool_;
};
