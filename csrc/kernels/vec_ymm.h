// Sixteen lanes as two ymm registers: the common part of AVX2 and AVX-VNNI. vec_generic.h describes the interface.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/split_pairs.h"

struct Ymm : SplitPairs<Ymm> {
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using Bytes = I;
  using PairPart = F;

  static constexpr int kFloatRows = 2;
  static constexpr int kFloatTokens = 2;
  static constexpr int kDirectWidth = 4;
  static constexpr int kGemmWidth = 4;
  using DirectWidths = std::integer_sequence<int, 1, 2, 3, 4>;
  using GemmWidths = std::integer_sequence<int, 2, 4>;
  static constexpr int kGemmBlocks = 1;
  static constexpr int kSums = 2;
  static constexpr int kSumsAtOnce = 4;

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  static F load_half(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
  static F load_bfloat16(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p + 8)), 16))};
  }
  static F load_int8(const int8_t* p) {
    const __m128i bytes = load128(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }

  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F zero_below(F value, F x, float limit) {
    const __m256 wide = _mm256_set1_ps(limit);
    return {_mm256_and_ps(value.low, _mm256_cmp_ps(x.low, wide, _CMP_NLT_UQ)),
            _mm256_and_ps(value.high, _mm256_cmp_ps(x.high, wide, _CMP_NLT_UQ))};
  }
  static F keep_first(F value, int count, F other) {
    const __m256i limit = _mm256_set1_epi32(count);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_cmpgt_epi32(limit, lane);
    const __m256i high = _mm256_cmpgt_epi32(limit, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
    return {_mm256_blendv_ps(other.low, value.low, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(other.high, value.high, _mm256_castsi256_ps(high))};
  }

  static float largest(F x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static float fold(F x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I set1_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I add_int(I a, I b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static I max_int(I a, I b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
  static int32_t largest_int(I x) {
    const __m256i eight = _mm256_max_epi32(x.low, x.high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static int32_t sum_int(I x) {
    const __m256i eight = _mm256_add_epi32(x.low, x.high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static void store_int(int32_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.high);
  }
  static void store_as_int8(int8_t* p, I x) {
    // The packing instructions saturate, which changes no code, and work on each half of a register separately.
    const __m256i words = _mm256_packs_epi32(x.low, x.high);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    const __m256i inorder = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(inorder));
  }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
  static I to_int(F x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
  static I magnitude_bits(F x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(x.low), mask), _mm256_and_si256(_mm256_castps_si256(x.high), mask)};
  }
  static F power_of_two(I n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.low, bias), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.high, bias), 23))};
  }

  template <int part>
  static F weight_part(const uint16_t* p) {
    return {pair_part<part>(load256(p)), pair_part<part>(load256(p + 16))};
  }
  static F add_exact_products(F sum, F a, F b) {
    return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
  }

  static Bytes load_bytes(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
  static Bytes flip_signs(Bytes x) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    return {_mm256_xor_si256(x.low, flip), _mm256_xor_si256(x.high, flip)};
  }
  static void store_bytes(uint8_t* p, Bytes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.high);
  }
  static Bytes low_nibbles(Bytes x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
  }
  static Bytes high_nibbles(Bytes x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(x.low, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.high, 4), mask)};
  }
  static I load_words(const int8_t* p) { return {load256(p), load256(p + 32)}; }
  static I pack4(I a, I b, I c, I d) {
    return {packed(a.low, b.low, c.low, d.low), packed(a.high, b.high, c.high, d.high)};
  }
  static I repeat4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return set1_int(word);
  }

 protected:
  // The second numbers of pairs or the first ones, as binary32.
  template <int part>
  static __m256 pair_part(__m256i pairs) {
    const __m256i second = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return _mm256_castsi256_ps(part == 0 ? _mm256_and_si256(pairs, second) : _mm256_slli_epi32(pairs, 16));
  }
  static __m256i packed(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i low = _mm256_or_si256(a, _mm256_slli_epi32(b, 8));
    return _mm256_or_si256(low, _mm256_or_si256(_mm256_slli_epi32(c, 16), _mm256_slli_epi32(d, 24)));
  }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
};
