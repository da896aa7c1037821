// AVX-VNNI: vpdpbusd on ymm registers, for machines without AVX-512.
#pragma once

#include "kernels/vec_ymm.h"

struct AvxVnni : Ymm {
  using Weights8 = Bytes;
  static constexpr int kOffset8 = 128;

  static I dot4(I sum, Bytes nibbles, I a) { return dot8(sum, nibbles, a); }
  static Weights8 prepare8(Bytes x) { return x; }
  static I dot8(I sum, Weights8 w, I a) {
#ifdef __AVXVNNI__
    return {_mm256_dpbusd_avx_epi32(sum.low, w.low, a.low), _mm256_dpbusd_avx_epi32(sum.high, w.high, a.high)};
#else  // built by `make native-avxvnni-check`, to test this file on a machine that has only the AVX-512 form
    return {_mm256_dpbusd_epi32(sum.low, w.low, a.low), _mm256_dpbusd_epi32(sum.high, w.high, a.high)};
#endif
  }
  static I dot_unsigned(I sum, I a, I b) { return dot8(sum, a, b); }
  static I dot_unsigned_repeated(I sum, I a, const int8_t* p) { return dot8(sum, a, repeat4(p)); }
  static I dot8_repeated(I sum, Weights8 w, const int8_t* p) { return dot8(sum, w, repeat4(p)); }
};
