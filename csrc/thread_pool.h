// Persistent threads that do one job together, meeting at barriers. Waiting spins for a moment, since most waits are
// shorter than waking up takes, and then sleeps, so that a machine with other work is not held.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

class ThreadPool {
 public:
  // Starts threads - 1 workers; the caller of `run` is the remaining one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // body(thread) on every thread, thread 0 being the caller; returns when all are done. One call at a time; body must
  // not throw, and every thread must come to the same barriers.
  template <class Body>
  void run(Body& body) {
    start([](void* context, int thread) { (*static_cast<Body*>(context))(thread); }, &body);
  }

  // Inside `run`: waits until every thread is here. What was written before is seen by all after.
  void barrier();

 private:
  using Job = void (*)(void* context, int thread);

  void start(Job job, void* context);
  void work(int thread);
  static void wait_while(const std::atomic<uint32_t>& value, uint32_t old);

  const int size_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool is_stopping_ = false;
  // Written by different threads at different times: each on a cache line of its own.
  alignas(64) std::atomic<uint32_t> jobs_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> meetings_{0};
  std::vector<std::thread> workers_;
};

// Hands out the chunks of an operation: to every thread those of its own run, one after the other, then what others
// have left. So a thread that the system holds up is helped, and nobody waits for it longer than a chunk takes.
class Shares {
 public:
  explicit Shares(int threads) : runs_(static_cast<size_t>(threads)) {}

  // Every thread begins the same operations in the same order, with a barrier after each before its results are read.
  void begin(int thread) { ++runs_[static_cast<size_t>(thread)].operation; }

  // A chunk of 0 .. count - 1 that nobody had in this operation, or -1; count is below 2^20.
  int take(int count, int thread);

 private:
  // What was taken of a thread's run: the operation's number and a count of chunks, so that nobody has to reset it.
  struct alignas(64) Run {
    std::atomic<uint64_t> taken{0};
    uint64_t operation = 0;  // its thread's own
  };

  std::vector<Run> runs_;
};

// The part of 0 .. count - 1 that belongs to a thread.
struct Range {
  int first, last;
};

inline Range share(int count, int thread, int threads) {
  const auto border = [&](int i) { return static_cast<int>(static_cast<int64_t>(count) * i / threads); };
  return {border(thread), border(thread + 1)};
}
