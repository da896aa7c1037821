// Persistent threads that run one job together and synchronize at barriers. A waiting thread first spins, since most
// waits are shorter than a wake-up, and then blocks, so that other programs get the core.
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

  // Runs body(thread) on every thread; thread 0 is the caller. Returns when all are done. One call at a time; body must
  // not throw, and every thread must reach the same barriers.
  template <class Body>
  void run(Body& body) {
    start([](void* context, int thread) { (*static_cast<Body*>(context))(thread); }, &body);
  }

  // Inside `run`: waits for every thread. Writes made before it are visible to all threads after it.
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
  // Written by different threads: each has its own cache line.
  alignas(64) std::atomic<uint32_t> jobs_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> meetings_{0};
  std::vector<std::thread> workers_;
};

// Distributes the chunks of an operation: every thread takes the chunks of its own range, then the remaining chunks of
// others (work stealing). So a thread that is descheduled delays the others by at most one chunk.
class Shares {
 public:
  explicit Shares(int threads) : runs_(static_cast<size_t>(threads)) {}

  // Every thread begins the same operations in the same order; a barrier separates an operation from its readers.
  void begin(int thread) { ++runs_[static_cast<size_t>(thread)].operation; }

  // A chunk of 0 .. count - 1 that no thread has taken in this operation, or -1; count is below 2^20.
  int take(int count, int thread);

 private:
  // Progress in a thread's range: the operation's number and the count of chunks taken, so that no reset is needed.
  struct alignas(64) Run {
    std::atomic<uint64_t> taken{0};
    uint64_t operation = 0;  // its thread's own
  };

  std::vector<Run> runs_;
};

// A thread's share of 0 .. count - 1.
struct Range {
  int first, last;
};

inline Range share(int count, int thread, int threads) {
  const auto border = [&](int i) { return static_cast<int>(static_cast<int64_t>(count) * i / threads); };
  return {border(thread), border(thread + 1)};
}
