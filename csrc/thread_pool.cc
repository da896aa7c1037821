#include "thread_pool.h"

#include "float_environment.h"

namespace {

constexpr int kSpins = 4000;  // of about 40 cycles each: some 50 microseconds

inline void pause_thread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads) {
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back(&ThreadPool::work, this, thread);
  } catch (...) {
    is_stopping_ = true;
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  is_stopping_ = true;
  jobs_.fetch_add(1, std::memory_order_release);
  jobs_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::start(Job job, void* context) {
  job_ = job;
  context_ = context;
  jobs_.fetch_add(1, std::memory_order_release);
  jobs_.notify_all();
  {
    const FloatEnvironment environment;
    job(context, 0);
  }
  barrier();
}

void ThreadPool::work(int thread) {
  const FloatEnvironment environment;
  for (uint32_t seen = 0;; ++seen) {
    wait_while(jobs_, seen);
    if (is_stopping_) return;
    job_(context_, thread);
    barrier();
  }
}

void ThreadPool::barrier() {
  if (size_ == 1) return;
  const uint32_t meeting = meetings_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
    arrived_.store(0, std::memory_order_relaxed);
    meetings_.store(meeting + 1, std::memory_order_release);
    meetings_.notify_all();
  } else {
    wait_while(meetings_, meeting);
  }
}

void ThreadPool::wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause_thread();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

int Shares::take(int count, int thread) {
  constexpr int kCountBits = 20;
  const int threads = static_cast<int>(runs_.size());
  const uint64_t operation = runs_[static_cast<size_t>(thread)].operation << kCountBits;
  for (int i = 0; i < threads; ++i) {
    const int owner = (thread + i) % threads;
    const Range run = share(count, owner, threads);
    std::atomic<uint64_t>& taken = runs_[static_cast<size_t>(owner)].taken;
    for (uint64_t seen = taken.load(std::memory_order_relaxed);;) {
      const uint64_t mine = seen < operation ? operation : seen;  // this thread is the first in this operation
      const int chunk = run.first + static_cast<int>(mine - operation);
      if (chunk >= run.last) break;
      if (taken.compare_exchange_weak(seen, mine + 1, std::memory_order_relaxed)) return chunk;
    }
  }
  return -1;
}
