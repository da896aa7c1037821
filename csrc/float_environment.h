// Sets the float mode of docs/numerics.md for an object's lifetime: round to nearest, keep subnormals. Other code in
// the process (for example torch, which may flush subnormals) may have left the thread in another mode.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;

#elif defined(__aarch64__)
#include <cstdint>

class FloatEnvironment {
 public:
  FloatEnvironment() {
    // 0: to nearest, subnormals kept, IEEE 754 binary16. The memory clobber keeps loads and stores in order around it.
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" ::"r"(uint64_t{0}) : "memory");
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_) : "memory"); }

 private:
  uint64_t saved_;

#else
#include <cfenv>

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(std::fegetround()) { std::fesetround(FE_TONEAREST); }
  ~FloatEnvironment() { std::fesetround(saved_); }

 private:
  int saved_;
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};
