// As vec_neondot.h, on an ARM processor that multiplies 2 rows by 2 tokens of 8 inputs each at once (SMMLA, ARMv8.6):
// twice the products of SDOT in one instruction. Prompts use it, through GroupSums in linear.h; up to 16 tokens and
// attention use SDOT. USDOT is not used: it would save one bit flip, one instruction per 16 weights for any number of
// tokens.
//
// SMMLA needs the 8 inputs of a row to be contiguous. Panels and activations have 4, as elsewhere: interleaving two
// units' words makes a row's 8 contiguous, and the order of inputs in an exact sum does not matter.
#pragma once

#include "kernels/linear.h"
#include "kernels/vec_neondot.h"

struct NeonI8mm : NeonDot {};

template <bool is_int4, int M>
struct GroupSums<NeonI8mm, is_int4, M> {
  static_assert(NeonI8mm::kGemmBlocks == 1 && M % 2 == 0);
  using V = NeonI8mm;

  static MINICPM_INLINE void add(const uint8_t*& panel, const int8_t*& codes, int G, V::I (&sum)[M][1]) {
    // Sums of rows 2 r, 2 r + 1 and tokens 2 t, 2 t + 1, one pair of rows per register: for each row both tokens' sums.
    int32x4_t square[M / 2][8];
    unroll<M / 2>([&](auto t) MINICPM_INLINE_LAMBDA {
      const V::I one = sum[2 * t][0], other = sum[2 * t + 1][0];
      spread(square[t] + 0, one.a, other.a);
      spread(square[t] + 2, one.b, other.b);
      spread(square[t] + 4, one.c, other.c);
      spread(square[t] + 6, one.d, other.d);
    });
    for (int k = 0; k < G; k += 8, panel += 128, codes += 8 * M) {
      int8x16_t tokens[M / 2];
      unroll<M / 2>([&](auto t) MINICPM_INLINE_LAMBDA {
        tokens[t] = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(words(codes + 8 * t), words(codes + 4 * M + 8 * t)),
                                                      vzip2_s32(words(codes + 8 * t), words(codes + 4 * M + 8 * t))));
      });
      const V::Weights8 low = weights(panel), high = weights(panel + 64);
      multiply(square, 0, low.a, high.a, tokens);
      multiply(square, 2, low.b, high.b, tokens);
      multiply(square, 4, low.c, high.c, tokens);
      multiply(square, 6, low.d, high.d, tokens);
    }
    unroll<M / 2>([&](auto t) MINICPM_INLINE_LAMBDA {
      const int32x4_t* s = square[t];
      sum[2 * t][0] = {vuzp1q_s32(s[0], s[1]), vuzp1q_s32(s[2], s[3]), vuzp1q_s32(s[4], s[5]), vuzp1q_s32(s[6], s[7])};
      sum[2 * t + 1][0] = {vuzp2q_s32(s[0], s[1]), vuzp2q_s32(s[2], s[3]), vuzp2q_s32(s[4], s[5]),
                           vuzp2q_s32(s[6], s[7])};
    });
  }

 private:
  static MINICPM_INLINE int32x2_t words(const int8_t* p) { return vreinterpret_s32_s8(vld1_s8(p)); }
  static MINICPM_INLINE V::Weights8 weights(const uint8_t* p) {
    const V::Bytes bytes = V::load_bytes(p);
    if constexpr (is_int4) {
      return V::as_signed(bytes);
    } else {
      return V::prepare8(bytes);
    }
  }
  // The sums of four rows for one token and for the other, as two 2 x 2 tiles.
  static MINICPM_INLINE void spread(int32x4_t* to, int32x4_t one, int32x4_t other) {
    to[0] = vzip1q_s32(one, other);
    to[1] = vzip2q_s32(one, other);
  }
  // Four rows' inputs, 4 in low and 4 in high, times those of all tokens.
  static MINICPM_INLINE void multiply(int32x4_t (&square)[M / 2][8], int pair, int8x16_t low, int8x16_t high,
                                      const int8x16_t (&tokens)[M / 2]) {
    const int32x4_t one = vreinterpretq_s32_s8(low), other = vreinterpretq_s32_s8(high);
    const int8x16_t first = vreinterpretq_s8_s32(vzip1q_s32(one, other));
    const int8x16_t second = vreinterpretq_s8_s32(vzip2q_s32(one, other));
    unroll<M / 2>([&](auto t) MINICPM_INLINE_LAMBDA {
      square[t][pair] = vmmlaq_s32(square[t][pair], first, tokens[t]);
      square[t][pair + 1] = vmmlaq_s32(square[t][pair + 1], second, tokens[t]);
    });
  }
};
