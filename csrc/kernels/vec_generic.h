// Sixteen lanes in plain C++, and the specification of the interface that every Vec implements.
//
//   F, I      16 floats, 16 int32. Every float operation is one IEEE operation per lane.
//   Bytes     64 bytes; lane i owns bytes 4 i .. 4 i + 3.
//   Weights8  64 codes of int8 weights, stored plus 128, ready for dot8.
//   kDirectWidth, DirectWidths  most tokens of a register tile that reads packed weights, and all widths there are
//   kGemmWidth, kGemmBlocks, GemmWidths  register tile of the GEMM: tokens x blocks of 16 rows, and all widths
//   kSums     vectors of sums that hide the multipliers' latency; shared by the tokens of a small tile
//   kSumsAtOnce  vectors of sums that fit in registers with their operands; divides 16
//   PairInput, PairPart, kPairParts  inputs as store_pairs writes them, and 16 pairs of bfloat16, or a part of them
//   kFloatRows, kFloatTokens  register tile of float weights: rows x tokens
//   kOffset8  the offset that dot8 adds to every code; the caller starts its sum at -kOffset8 * sum of activations
//
// max(a, b) is b where either is NaN, min likewise. to_int rounds to nearest, ties to even. dot4 and dot8 add, per
// lane, the four products of unsigned weight bytes and signed activation bytes, exactly; dot_unsigned those of bytes
// 0 .. 127 and signed ones. pack4 makes four numbers 0 .. 127 of every lane its four bytes. store_pairs takes 32
// bfloat16 as binary32; over all parts, add_exact_products adds to lane i the product of its second numbers (2 i + 1)
// and then that of its first ones (2 i): exact products, one addition after the other.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "float16.h"
#include "kernels/split_pairs.h"

struct Generic : SplitPairs<Generic> {
  struct F {
    float lane[16];
  };
  struct I {
    int32_t lane[16];
  };
  struct Bytes {
    uint8_t byte[64];
  };
  using Weights8 = Bytes;
  using PairPart = F;

  static constexpr int kFloatRows = 2;
  static constexpr int kFloatTokens = 2;
  static constexpr int kDirectWidth = 4;
  static constexpr int kGemmWidth = 4;
  using DirectWidths = std::integer_sequence<int, 1, 2, 3, 4>;
  using GemmWidths = std::integer_sequence<int, 2, 4>;
  static constexpr int kGemmBlocks = 1;
  static constexpr int kSums = 1;
  static constexpr int kSumsAtOnce = 4;
  static constexpr int kOffset8 = 128;

  static F zero() { return set1(0.0f); }
  static F set1(float x) {
    return each([&](int) { return x; });
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(float* p, const F& x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static F load_half(const uint16_t* p) {
    return each([&](int i) { return float_from_half(p[i]); });
  }
  static F load_bfloat16(const uint16_t* p) {
    return each([&](int i) { return float_from_bfloat16(p[i]); });
  }
  static F load_int8(const int8_t* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }

  static F add(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F zero_below(const F& value, const F& x, float limit) {
    return each([&](int i) { return x.lane[i] < limit ? 0.0f : value.lane[i]; });
  }
  static F keep_first(const F& value, int count, const F& other) {
    return each([&](int i) { return i < count ? value.lane[i] : other.lane[i]; });
  }

  static float largest(const F& x) {
    float most = x.lane[0];
    for (int i = 1; i < 16; ++i) most = x.lane[i] > most ? x.lane[i] : most;
    return most;
  }
  static float fold(const F& x) {
    F y = x;
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) y.lane[i] += y.lane[i + half];
    }
    return y.lane[0];
  }

  static I zero_int() { return set1_int(0); }
  static I set1_int(int32_t x) {
    return each_int([&](int) { return x; });
  }
  static I add_int(const I& a, const I& b) {
    return each_int([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static I max_int(const I& a, const I& b) {
    return each_int([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static int32_t largest_int(const I& x) {
    int32_t most = x.lane[0];
    for (int i = 1; i < 16; ++i) most = x.lane[i] > most ? x.lane[i] : most;
    return most;
  }
  static int32_t sum_int(const I& x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x.lane[i];
    return sum;
  }
  static void store_int(int32_t* p, const I& x) { std::memcpy(p, x.lane, sizeof x.lane); }
  static void store_as_int8(int8_t* p, const I& x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.lane[i]);
  }
  static F to_float(const I& x) {
    return each([&](int i) { return static_cast<float>(x.lane[i]); });
  }
  static I to_int(const F& x) {
    // NaN has no integer value; like the vector instructions this gives the most negative integer.
    return each_int(
        [&](int i) { return x.lane[i] == x.lane[i] ? static_cast<int32_t>(__builtin_lrintf(x.lane[i])) : INT32_MIN; });
  }
  static I magnitude_bits(const F& x) {
    return each_int([&](int i) { return static_cast<int32_t>(bits_of_float(x.lane[i]) & 0x7fffffff); });
  }
  static F power_of_two(const I& n) {
    return each([&](int i) { return float_from_bits((static_cast<uint32_t>(n.lane[i]) + 127u) << 23); });
  }

  template <int part>
  static F weight_part(const uint16_t* p) {
    // By words: GCC 12 vectorizes loads of every second number incorrectly.
    uint32_t words[16];
    std::memcpy(words, p, sizeof words);
    return each([&](int i) { return float_from_bits(part == 0 ? words[i] & 0xffff0000 : words[i] << 16); });
  }
  static F add_exact_products(const F& sum, const F& a, const F& b) { return add(sum, mul(a, b)); }

  static Bytes load_bytes(const uint8_t* p) {
    Bytes x;
    std::memcpy(x.byte, p, sizeof x.byte);
    return x;
  }
  static Bytes flip_signs(const Bytes& x) {
    Bytes y;
    for (int i = 0; i < 64; ++i) y.byte[i] = x.byte[i] ^ 0x80;
    return y;
  }
  static void store_bytes(uint8_t* p, const Bytes& x) { std::memcpy(p, x.byte, sizeof x.byte); }
  static Bytes low_nibbles(const Bytes& x) {
    Bytes y;
    for (int i = 0; i < 64; ++i) y.byte[i] = x.byte[i] & 15;
    return y;
  }
  static Bytes high_nibbles(const Bytes& x) {
    Bytes y;
    for (int i = 0; i < 64; ++i) y.byte[i] = x.byte[i] >> 4;
    return y;
  }
  static I repeat4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return set1_int(word);
  }
  static I dot4(const I& sum, const Bytes& nibbles, const I& a) { return dot8(sum, nibbles, a); }
  static Weights8 prepare8(const Bytes& x) { return x; }
  static I dot8(const I& sum, const Weights8& w, const I& a) {
    int8_t codes[64];
    std::memcpy(codes, a.lane, sizeof codes);
    I total = sum;
    for (int i = 0; i < 64; ++i) total.lane[i / 4] += w.byte[i] * codes[i];
    return total;
  }
  static I dot8_repeated(const I& sum, const Weights8& w, const int8_t* p) { return dot8(sum, w, repeat4(p)); }
  static I dot_unsigned(const I& sum, const I& a, const I& b) {
    Bytes bytes;
    std::memcpy(bytes.byte, a.lane, sizeof bytes);
    return dot8(sum, bytes, b);
  }
  static I dot_unsigned_repeated(const I& sum, const I& a, const int8_t* p) { return dot_unsigned(sum, a, repeat4(p)); }
  static I load_words(const int8_t* p) {
    I x;
    std::memcpy(x.lane, p, sizeof x);
    return x;
  }
  static I pack4(const I& a, const I& b, const I& c, const I& d) {
    return each_int([&](int i) { return a.lane[i] | b.lane[i] << 8 | c.lane[i] << 16 | d.lane[i] << 24; });
  }

 private:
  template <class Body>
  static F each(Body body) {
    F x;
    for (int i = 0; i < 16; ++i) x.lane[i] = body(i);
    return x;
  }
  template <class Body>
  static I each_int(Body body) {
    I x;
    for (int i = 0; i < 16; ++i) x.lane[i] = body(i);
    return x;
  }
};
