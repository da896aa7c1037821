// The peak rates of a processor, for `minicpm bench`: the kernels' instructions without any other work.
#pragma once

#include "kernels/kernels.h"
#include "kernels/unroll.h"

// The sum of words, with enough independent loads to saturate the memory; `count` is a multiple of 16.
static uint64_t read_words(const uint64_t* words, size_t count) {
  uint64_t sums[16] = {};
  for (size_t i = 0; i < count; i += 16) {
    for (int j = 0; j < 16; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

// `rounds` times the products of a GEMM tile and four inputs, all in registers; returns the number of products.
// Every sum starts at a different number and `sink` gets the total, so the compiler can neither merge nor drop sums.
// A round adds at most 240 to each of the at most 24: 2^16 rounds stay within 32 bits.
template <class V>
static int64_t multiply_bytes(int64_t rounds, int32_t* sink) {
  constexpr int M = V::kGemmWidth, kBlocks = V::kGemmBlocks, kInputs = 4;
  alignas(64) uint8_t nibbles[64];
  for (int i = 0; i < 64; ++i) nibbles[i] = static_cast<uint8_t>(i % 16);
  typename V::I x[kInputs];
  for (int i = 0; i < kInputs; ++i) x[i] = V::set1_int(0x01010101 * (i + 1));
  typename V::I sum[M][kBlocks];
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA { sum[m][b] = V::set1_int(m * kBlocks + b); });
  });
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+m"(nibbles));  // an opaque change: the compiler must not hoist the products
    const typename V::Bytes w = V::load_bytes(nibbles);
    unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
      unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA { sum[m][b] = V::dot4(sum[m][b], w, x[m % kInputs]); });
    });
  }
  typename V::I total = V::zero_int();
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA { total = V::add_int(total, sum[m][b]); });
  });
  V::store_int(sink, total);
  return rounds * M * kBlocks * 64;
}
