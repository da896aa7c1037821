// binary16 and bfloat16 conversion in integer arithmetic: the same bits on every machine, with or without F16C.
// Everything is `static`: files compiled for different instruction sets must not share a function's code.
#pragma once

#include <cstdint>
#include <cstring>

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_from_bfloat16(uint16_t word) { return float_from_bits(static_cast<uint32_t>(word) << 16); }

// Rounds to nearest, ties to even; subnormal numbers become zero.
static inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
  if (magnitude < 0x00800000) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t rounded = magnitude > 0x7f800000 ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  return static_cast<uint16_t>(rounded >> 16);
}

static inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
  // Subnormal or zero: a whole number of 2**-24, exact in float.
  const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
  return float_from_bits(sign | bits_of_float(value));
}

// Rounds to nearest, ties to even; subnormal halves are kept.
static inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {
    // Below 2**-14: adding 0.5 leaves the multiple of 2**-24 in the low bits, rounded by the addition itself.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}
