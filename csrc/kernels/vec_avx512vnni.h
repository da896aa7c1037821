// Sixteen lanes as one zmm register. The interface of a Vec is described in vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/split_pairs.h"

struct Avx512Vnni : SplitPairs<Avx512Vnni> {
  using F = __m512;
  using I = __m512i;
  using Bytes = __m512i;
  using Weights8 = __m512i;
  using PairPart = F;

  static constexpr int kFloatRows = 4;
  static constexpr int kFloatTokens = 6;
  static constexpr int kDirectWidth = 8;
  static constexpr int kGemmWidth = 6;
  using DirectWidths = std::integer_sequence<int, 1, 2, 3, 4, 6, 8>;
  using GemmWidths = std::integer_sequence<int, 2, 4, 6>;
  static constexpr int kGemmBlocks = 2;
  static constexpr int kSums = 4;
  static constexpr int kSumsAtOnce = 16;
  static constexpr int kOffset8 = 128;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bfloat16(const uint16_t* p) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  static F load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F zero_below(F value, F x, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(limit), _CMP_NLT_UQ), value);
  }
  static F keep_first(F value, int count, F other) {
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>((1u << count) - 1), value);
  }

  static float largest(F x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float fold(F x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I set1_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  static int32_t largest_int(I x) { return _mm512_reduce_max_epi32(x); }
  static int32_t sum_int(I x) { return _mm512_reduce_add_epi32(x); }
  static void store_int(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static void store_as_int8(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I to_int(F x) { return _mm512_cvtps_epi32(x); }
  static I magnitude_bits(F x) { return _mm512_and_si512(_mm512_castps_si512(x), set1_int(0x7fffffff)); }
  static F power_of_two(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, set1_int(127)), 23)); }

  template <int part>
  static F weight_part(const uint16_t* p) {
    const __m512i pairs = _mm512_loadu_si512(p), second = set1_int(static_cast<int32_t>(0xffff0000));
    return _mm512_castsi512_ps(part == 0 ? _mm512_and_si512(pairs, second) : _mm512_slli_epi32(pairs, 16));
  }
  static F add_exact_products(F sum, F a, F b) { return _mm512_fmadd_ps(a, b, sum); }

  static Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Bytes flip_signs(Bytes x) { return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(0x80))); }
  static void store_bytes(uint8_t* p, Bytes x) { _mm512_storeu_si512(p, x); }
  static Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
  static I repeat4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
  }
  static I dot4(I sum, Bytes nibbles, I a) { return dot8(sum, nibbles, a); }
  static Weights8 prepare8(Bytes x) { return x; }
  static I dot8(I sum, Weights8 w, I a) { return _mm512_dpbusd_epi32(sum, w, a); }
  static I dot_unsigned(I sum, I a, I b) { return _mm512_dpbusd_epi32(sum, a, b); }
  static I dot_unsigned_repeated(I sum, I a, const int8_t* p) { return dot8_repeated(sum, a, p); }
  static I load_words(const int8_t* p) { return _mm512_loadu_si512(p); }
  static I pack4(I a, I b, I c, I d) {
    const I low = _mm512_or_si512(a, _mm512_slli_epi32(b, 8));
    return _mm512_or_si512(low, _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
  }
  static I dot8_repeated(I sum, Weights8 w, const int8_t* p) {
    // GCC 12 emits a separate broadcast, which takes as long as the product.
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const int32_t*>(p)));
    return sum;
  }
};
