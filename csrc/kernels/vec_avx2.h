// AVX2: products by vpmaddubsw, which saturates at 16 bits; the bounds are those of docs/numerics.md, section 3.
#pragma once

#include "kernels/vec_ymm.h"

struct Avx2 : Ymm {
  // |w| with w's sign moved to the activation: 2 * 127 * 127 = 32,258 fits in 16 bits, 2 * 255 * 127 would not.
  struct Weights8 {
    I magnitude, value;
  };
  static constexpr int kOffset8 = 0;

  static I dot4(I sum, Bytes nibbles, I a) {  // pairs are at most 2 * 15 * 127 = 3,810
    return {_mm256_add_epi32(sum.low, widened(_mm256_maddubs_epi16(nibbles.low, a.low))),
            _mm256_add_epi32(sum.high, widened(_mm256_maddubs_epi16(nibbles.high, a.high)))};
  }
  static Weights8 prepare8(Bytes x) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const I value = {_mm256_xor_si256(x.low, flip), _mm256_xor_si256(x.high, flip)};
    return {{_mm256_abs_epi8(value.low), _mm256_abs_epi8(value.high)}, value};
  }
  static I dot8(I sum, Weights8 w, I a) {
    const __m256i low = _mm256_maddubs_epi16(w.magnitude.low, _mm256_sign_epi8(a.low, w.value.low));
    const __m256i high = _mm256_maddubs_epi16(w.magnitude.high, _mm256_sign_epi8(a.high, w.value.high));
    return {_mm256_add_epi32(sum.low, widened(low)), _mm256_add_epi32(sum.high, widened(high))};
  }
  // Pairs are at most 2 * 127 * 127 = 32,258.
  static I dot_unsigned(I sum, I a, I b) { return dot4(sum, a, b); }
  static I dot_unsigned_repeated(I sum, I a, const int8_t* p) { return dot4(sum, a, repeat4(p)); }
  static I dot8_repeated(I sum, Weights8 w, const int8_t* p) { return dot8(sum, w, repeat4(p)); }

 private:
  static __m256i widened(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};
