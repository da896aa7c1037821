// The two peaks that a speed is a part of: how fast this machine's memory is read, and how many products of bytes its
// processor makes. Both are measured with threads and kernels as the engine uses them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "thread_pool.h"

class Machine {
 public:
  // Takes `memory_bytes` of memory when it is first read; std::bad_alloc where there is none.
  Machine(const Kernels& kernels, int threads, size_t memory_bytes);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  int threads() const { return pool_.size(); }
  size_t memory_bytes() const { return bytes_; }

  // Bytes a second of reading the memory once, every thread its own part from one end to the other.
  double read_bandwidth();
  // Products of an int4 and an int8 number a second, measured for so long on all threads.
  double product_rate(double seconds);

 private:
  void allocate();

  const Kernels& kernels_;
  const size_t bytes_;
  uint64_t* words_ = nullptr;
  std::vector<uint64_t> sums_;  // of what was read: the reading is not left out
  ThreadPool pool_;
};
