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
