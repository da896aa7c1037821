// Sixteen lanes as four 128-bit registers of an ARM processor that multiplies bytes four at a time (SDOT, ARMv8.2).
// vec_generic.h describes the interface.
//
// SDOT takes both sides signed and adds in 32 bits without saturating. So codes become signed numbers first, exactly:
// nibbles 0 .. 15 and weights of attention 0 .. 127 are the same number as int8; an int8 weight, stored as w + 128 in
// 1 .. 255, is w again when its highest bit is flipped. A product is at most 128 * 127, a sum what docs/numerics.md,
// section 3, gives: below 2**24. No offset remains, hence kOffset8 = 0.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/split_pairs.h"
#include "kernels/unroll.h"

struct NeonDot : SplitPairs<NeonDot> {
  struct F {
    float32x4_t a, b, c, d;  // lanes 0 .. 3, 4 .. 7, 8 .. 11, 12 .. 15
  };
  struct I {
    int32x4_t a, b, c, d;
  };
  struct Bytes {
    uint8x16_t a, b, c, d;
  };
  struct Weights8 {
    int8x16_t a, b, c, d;
  };

  using PairPart = F;

  static constexpr int kFloatRows = 2;
  static constexpr int kFloatTokens = 2;
  // A tile of 4 tokens uses 16 of 32 registers for its sums and 4 for weights.
  static constexpr int kDirectWidth = 4;
  static constexpr int kGemmWidth = 4;
  using DirectWidths = std::integer_sequence<int, 1, 2, 3, 4>;
  using GemmWidths = std::integer_sequence<int, 2, 4>;
  static constexpr int kGemmBlocks = 1;
  static constexpr int kSums = 2;
  static constexpr int kSumsAtOnce = 4;
  static constexpr int kOffset8 = 0;

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    const float32x4_t four = vdupq_n_f32(x);
    return {four, four, four, four};
  }
  static F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
  static void store(float* p, F x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
  }
  static F load_half(const uint16_t* p) { return {halves(p), halves(p + 4), halves(p + 8), halves(p + 12)}; }
  static F load_bfloat16(const uint16_t* p) { return {bfloats(p), bfloats(p + 4), bfloats(p + 8), bfloats(p + 12)}; }
  static F load_int8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
  }

  static F add(F x, F y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
  }
  static F sub(F x, F y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
  }
  static F mul(F x, F y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
  }
  static F div(F x, F y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
  }
  static F max(F x, F y) { return {larger4(x.a, y.a), larger4(x.b, y.b), larger4(x.c, y.c), larger4(x.d, y.d)}; }
  static F min(F x, F y) { return {smaller4(x.a, y.a), smaller4(x.b, y.b), smaller4(x.c, y.c), smaller4(x.d, y.d)}; }
  static F zero_below(F value, F x, float limit) {
    const float32x4_t four = vdupq_n_f32(limit);
    return {unless(value.a, vcltq_f32(x.a, four)), unless(value.b, vcltq_f32(x.b, four)),
            unless(value.c, vcltq_f32(x.c, four)), unless(value.d, vcltq_f32(x.d, four))};
  }
  static F keep_first(F value, int count, F other) {
    static constexpr int32_t kFour[4] = {0, 1, 2, 3};
    const int32x4_t lane = vld1q_s32(kFour);
    return {vbslq_f32(vcltq_s32(lane, vdupq_n_s32(count)), value.a, other.a),
            vbslq_f32(vcltq_s32(lane, vdupq_n_s32(count - 4)), value.b, other.b),
            vbslq_f32(vcltq_s32(lane, vdupq_n_s32(count - 8)), value.c, other.c),
            vbslq_f32(vcltq_s32(lane, vdupq_n_s32(count - 12)), value.d, other.d)};
  }

  static float largest(F x) {
    const float32x4_t four = larger4(larger4(x.a, x.c), larger4(x.b, x.d));
    const float32x4_t two = larger4(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger4(two, vextq_f32(two, two, 1)), 0);
  }
  static float fold(F x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
  }

  static I zero_int() { return set1_int(0); }
  static I set1_int(int32_t x) {
    const int32x4_t four = vdupq_n_s32(x);
    return {four, four, four, four};
  }
  static I add_int(I x, I y) {
    return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
  }
  static I max_int(I x, I y) {
    return {vmaxq_s32(x.a, y.a), vmaxq_s32(x.b, y.b), vmaxq_s32(x.c, y.c), vmaxq_s32(x.d, y.d)};
  }
  static int32_t largest_int(I x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
  static int32_t sum_int(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
  static void store_int(int32_t* p, I x) {
    vst1q_s32(p, x.a);
    vst1q_s32(p + 4, x.b);
    vst1q_s32(p + 8, x.c);
    vst1q_s32(p + 12, x.d);
  }
  static void store_as_int8(int8_t* p, I x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  static F to_float(I x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }
  // NaN becomes 0, on other instruction sets the most negative integer; the kernels never use the integer of a NaN.
  static I to_int(F x) { return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)}; }
  static I magnitude_bits(F x) { return {magnitudes(x.a), magnitudes(x.b), magnitudes(x.c), magnitudes(x.d)}; }
  static F power_of_two(I n) { return {powers(n.a), powers(n.b), powers(n.c), powers(n.d)}; }

  template <int part>
  static F weight_part(const uint16_t* p) {
    return {pair_part<part>(p), pair_part<part>(p + 8), pair_part<part>(p + 16), pair_part<part>(p + 24)};
  }
  static F add_exact_products(F sum, F x, F y) {
    return {vfmaq_f32(sum.a, x.a, y.a), vfmaq_f32(sum.b, x.b, y.b), vfmaq_f32(sum.c, x.c, y.c),
            vfmaq_f32(sum.d, x.d, y.d)};
  }

  static Bytes load_bytes(const uint8_t* p) {
    return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
  }
  static Bytes flip_signs(Bytes x) { return {flipped(x.a), flipped(x.b), flipped(x.c), flipped(x.d)}; }
  static void store_bytes(uint8_t* p, Bytes x) {
    vst1q_u8(p, x.a);
    vst1q_u8(p + 16, x.b);
    vst1q_u8(p + 32, x.c);
    vst1q_u8(p + 48, x.d);
  }
  static Bytes low_nibbles(Bytes x) {
    const uint8x16_t mask = vdupq_n_u8(15);
    return {vandq_u8(x.a, mask), vandq_u8(x.b, mask), vandq_u8(x.c, mask), vandq_u8(x.d, mask)};
  }
  static Bytes high_nibbles(Bytes x) {
    return {vshrq_n_u8(x.a, 4), vshrq_n_u8(x.b, 4), vshrq_n_u8(x.c, 4), vshrq_n_u8(x.d, 4)};
  }
  static I repeat4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return set1_int(word);
  }
  static I load_words(const int8_t* p) { return {as_words(p), as_words(p + 16), as_words(p + 32), as_words(p + 48)}; }
  static I pack4(I x, I y, I z, I w) {
    return {packed(x.a, y.a, z.a, w.a), packed(x.b, y.b, z.b, w.b), packed(x.c, y.c, z.c, w.c),
            packed(x.d, y.d, z.d, w.d)};
  }

  static I dot4(I sum, Bytes nibbles, I x) { return dot8(sum, as_signed(nibbles), x); }
  static Weights8 prepare8(Bytes x) { return as_signed(flip_signs(x)); }
  static I dot8(I sum, Weights8 w, I x) {
    return {vdotq_s32(sum.a, w.a, as_bytes(x.a)), vdotq_s32(sum.b, w.b, as_bytes(x.b)),
            vdotq_s32(sum.c, w.c, as_bytes(x.c)), vdotq_s32(sum.d, w.d, as_bytes(x.d))};
  }
  static I dot8_repeated(I sum, Weights8 w, const int8_t* p) { return dot8(sum, w, repeat4(p)); }
  static I dot_unsigned(I sum, I x, I y) {
    return dot8(sum, {as_bytes(x.a), as_bytes(x.b), as_bytes(x.c), as_bytes(x.d)}, y);
  }
  static I dot_unsigned_repeated(I sum, I x, const int8_t* p) { return dot_unsigned(sum, x, repeat4(p)); }

  static MINICPM_INLINE Weights8 as_signed(Bytes x) {
    return {vreinterpretq_s8_u8(x.a), vreinterpretq_s8_u8(x.b), vreinterpretq_s8_u8(x.c), vreinterpretq_s8_u8(x.d)};
  }

 private:
  static MINICPM_INLINE float32x4_t halves(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static MINICPM_INLINE float32x4_t bfloats(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  // The second numbers of pairs of bfloat16 or the first ones, as binary32.
  template <int part>
  static MINICPM_INLINE float32x4_t pair_part(const uint16_t* p) {
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
    return vreinterpretq_f32_u32(part == 0 ? vandq_u32(pairs, vdupq_n_u32(0xffff0000)) : vshlq_n_u32(pairs, 16));
  }
  // Not FMAX and FMIN, which return NaN if either operand is NaN.
  static MINICPM_INLINE float32x4_t larger4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
  static MINICPM_INLINE float32x4_t smaller4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
  static MINICPM_INLINE float32x4_t unless(float32x4_t value, uint32x4_t mask) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), mask));
  }
  static MINICPM_INLINE int32x4_t magnitudes(float32x4_t x) {
    return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff));
  }
  static MINICPM_INLINE float32x4_t powers(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
  static MINICPM_INLINE uint8x16_t flipped(uint8x16_t x) { return veorq_u8(x, vdupq_n_u8(0x80)); }
  static MINICPM_INLINE int8x16_t as_bytes(int32x4_t x) { return vreinterpretq_s8_s32(x); }
  static MINICPM_INLINE int32x4_t as_words(const int8_t* p) { return vreinterpretq_s32_s8(vld1q_s8(p)); }
  // A shift with insertion keeps the lower bits: the numbers are 0 .. 127.
  static MINICPM_INLINE int32x4_t packed(int32x4_t x, int32x4_t y, int32x4_t z, int32x4_t w) {
    return vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(x, y, 8), z, 16), w, 24);
  }
};
