// As vec_avx512vnni.h, where pairs of bfloat16 are multiplied by one instruction. Its product is that of two steps in
// binary32: exact products, the second added before the first, each sum rounded to nearest. It treats numbers below
// 2**-126 as zero, regardless of the mode.
#pragma once

#include "kernels/vec_avx512vnni.h"

struct Avx512Bf16 : Avx512Vnni {
  using PairInput = uint16_t;
  using PairPart = __m512bh;

  static constexpr int kPairParts = 1;

  static void store_pairs(const uint32_t* words, uint16_t* out) {
    for (int i = 0; i < 32; ++i) out[i] = static_cast<uint16_t>(words[i] >> 16);
  }
  template <int part>
  static PairPart input_part(const uint16_t* p) {
    return (__m512bh)_mm512_loadu_si512(p);
  }
  template <int part>
  static PairPart weight_part(const uint16_t* p) {
    return (__m512bh)_mm512_loadu_si512(p);
  }
  static F add_exact_products(F sum, PairPart a, PairPart b) { return _mm512_dpbf16_ps(sum, a, b); }
};
