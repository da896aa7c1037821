// Pairs of bfloat16 in two parts, for instruction sets that multiply binary32: all second numbers, then all first ones.
// A product of two bfloat16 is exact in binary32, so fusing it with its addition changes no bit.
#pragma once

#include <cstdint>
#include <cstring>

// CRTP base of a Vec: the inputs, and the loading of a part of them. Each Vec splits weights into parts in its own
// way.
template <class V>
struct SplitPairs {
  using PairInput = float;

  static constexpr int kPairParts = 2;

  static void store_pairs(const uint32_t* words, float* out) {
    for (int i = 0; i < 16; ++i) std::memcpy(out + i, words + 2 * i + 1, sizeof *out);
    for (int i = 0; i < 16; ++i) std::memcpy(out + i + 16, words + 2 * i, sizeof *out);
  }
  template <int part>
  static auto input_part(const float* p) {
    return V::load(p + 16 * part);
  }
};
