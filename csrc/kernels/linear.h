// Linear layers: docs/numerics.md, section 3. One output row per lane; per group of inputs a whole-number sum, then
// y = y + (f32(S) * s) * d, groups in order. The initial value of a sum cancels the offset of the stored codes.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/unroll.h"

template <class V>
static MINICPM_INLINE typename V::F load_scales(const uint8_t* p, bool is_half) {
  if (is_half) return V::load_half(reinterpret_cast<const uint16_t*>(p));
  return V::load(reinterpret_cast<const float*>(p));
}

// Rows n .. n + 15 of one token.
template <class V>
static MINICPM_INLINE void write_rows(const Output& to, int token, int n, typename V::F y) {
  float* out = to.out + token * to.stride + n;
  if (n + kLanes <= to.columns) {
    V::store(out, to.is_residual ? V::add(V::load(out), V::mul(y, V::set1(to.residual_scale))) : y);
    return;
  }
  float rows[kLanes];
  V::store(rows, y);
  for (int i = 0; n + i < to.columns; ++i) {
    out[i] = to.is_residual ? out[i] + rows[i] * to.residual_scale : rows[i];
  }
}

// Weights are read once, so lines are prefetched at this distance: first into the L2 cache, which has more outstanding
// misses than the L1, then into the L1. The hardware prefetcher alone is too short-sighted: a core of an Emerald Rapids
// Xeon reads 10 GB/s with it, 13.5 with the L1 prefetch only, and 16 with both, which equals plain reading.
constexpr int kFarPrefetchBytes = 16384, kNearPrefetchBytes = 4096;

// A block of 16 rows times a tile of M tokens, read directly from the packed weights. With few tokens the multipliers
// would wait for the previous sum, so each token then has several partial sums.
template <class V, bool is_int4, int M>
static void direct_tile(const Weight& weight, const uint8_t* block, const Activations& a, int tile, int n,
                        const Output& to) {
  constexpr int kChains = larger(1, V::kSums / M);
  constexpr int kStart = is_int4 ? 1 : V::kOffset8 / kNibbleOffset;
  const int8_t* codes = a.tile_codes(tile);
  const float* scales = a.tile_scales(tile);
  const int32_t* starts = a.tile_starts(tile);
  const int units = static_cast<int>(weight.code_bytes() / 64), groups = weight.groups();
  const bool is_half = weight.has_half_scales;
  const size_t group_bytes = weight.group_bytes(), code_bytes = weight.code_bytes();

  typename V::F total[M];
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA { total[m] = V::zero(); });
  for (int g = 0; g < groups; ++g, block += group_bytes) {
    typename V::I sum[M][kChains];
    unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
      sum[m][0] = V::set1_int(kStart * starts[m]);
      unroll<kChains - 1>([&](auto c) MINICPM_INLINE_LAMBDA { sum[m][c + 1] = V::zero_int(); });
    });
    // Two units per iteration (G is a multiple of 32): 4 products per token with int4, 2 with int8.
    for (int u = 0; u < units; u += 2) {
      unroll<2>([&](auto which) MINICPM_INLINE_LAMBDA {
        constexpr int i = which;
        const typename V::Bytes bytes = V::load_bytes(block + (u + i) * 64);
        __builtin_prefetch(block + (u + i) * 64 + kFarPrefetchBytes, 0, 2);
        __builtin_prefetch(block + (u + i) * 64 + kNearPrefetchBytes);
        if constexpr (is_int4) {
          // One half after the other: AVX2 has too few registers for both and the sums.
          constexpr int kLow = 2 * i % kChains, kHigh = (2 * i + 1) % kChains;
          const typename V::Bytes low = V::low_nibbles(bytes);
          unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
            sum[m][kLow] = V::dot4(sum[m][kLow], low, V::repeat4(codes + (2 * i * M + m) * 4));
          });
          const typename V::Bytes high = V::high_nibbles(bytes);
          unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
            sum[m][kHigh] = V::dot4(sum[m][kHigh], high, V::repeat4(codes + ((2 * i + 1) * M + m) * 4));
          });
        } else {
          const typename V::Weights8 w = V::prepare8(bytes);
          unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
            constexpr int kChain = i % kChains;
            sum[m][kChain] = V::dot8(sum[m][kChain], w, V::repeat4(codes + (i * M + m) * 4));
          });
        }
      });
      codes += 2 * M * (is_int4 ? 8 : 4);
    }
    const typename V::F s = load_scales<V>(block + code_bytes, is_half);
    unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
      typename V::I S = sum[m][0];
      unroll<kChains - 1>([&](auto c) MINICPM_INLINE_LAMBDA { S = V::add_int(S, sum[m][c + 1]); });
      total[m] = V::add(total[m], V::mul(V::mul(V::to_float(S), s), V::set1(scales[m])));
    });
    scales += M;
    starts += M;
  }
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    if (tile * a.width + m < a.tokens) write_rows<V>(to, tile * a.width + m, n, total[m]);
  });
}

// Turns a number into a template argument: calls body(integral_constant) for the option equal to `value`.
template <class Body, int... options>
static MINICPM_INLINE void with_constant(std::integer_sequence<int, options...>, int value, Body&& body) {
  ((value == options ? body(std::integral_constant<int, options>{}) : void()), ...);
}

template <class V>
static void linear_direct(const Weight& weight, const Activations& a, int first, int last, const Output& to) {
  for (int b = first; b < last; ++b) {
    const uint8_t* block = weight.data + b * weight.block_bytes();
    for (int tile = 0; tile < a.tiles(); ++tile) {
      with_constant(typename V::DirectWidths{}, a.tile_width(tile), [&](auto m) {
        if (weight.kind == WeightKind::kInt4) {
          direct_tile<V, true, m>(weight, block, a, tile, b * kLanes, to);
        } else {
          direct_tile<V, false, m>(weight, block, a, tile, b * kLanes, to);
        }
      });
    }
  }
}

// The place of a slab in a panel: groups [first_group, first_group + groups) of the weight, unpacked, and their scales.
struct Slab {
  const uint8_t* codes;
  const float* scales;
  int first_group, groups;
  bool is_first, is_last;  // of the slabs of a product
};

// The weights' operand of a product: int4 bytes unchanged, int8 in the instruction set's format.
template <class V, bool is_int4>
struct Operand {
  using Type = typename V::Weights8;
};
template <class V>
struct Operand<V, true> {
  using Type = typename V::Bytes;
};

// 4 inputs of a panel's rows times those of M tokens.
template <class V, bool is_int4, int M>
static MINICPM_INLINE void multiply_unit(const uint8_t* panel, const int8_t* codes,
                                         typename V::I (&sum)[M][V::kGemmBlocks]) {
  constexpr int kBlocks = V::kGemmBlocks;
  typename Operand<V, is_int4>::Type w[kBlocks];
  unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA {
    const typename V::Bytes bytes = V::load_bytes(panel + 64 * b);
    if constexpr (is_int4) {
      w[b] = bytes;
    } else {
      w[b] = V::prepare8(bytes);
    }
  });
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    const typename V::I x = V::repeat4(codes + 4 * m);
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA {
      if constexpr (is_int4) {
        sum[m][b] = V::dot4(sum[m][b], w[b], x);
      } else {
        sum[m][b] = V::dot8(sum[m][b], w[b], x);
      }
    });
  });
}

// Adds the products of a group of G inputs, a panel's rows and M tokens, and moves on to the next group; G is a
// multiple of 32. Instruction sets that multiply tiles instead of lanes specialize it.
template <class V, bool is_int4, int M>
struct GroupSums {
  static MINICPM_INLINE void add(const uint8_t*& panel, const int8_t*& codes, int G,
                                 typename V::I (&sum)[M][V::kGemmBlocks]) {
    constexpr int kUnits = 4;  // of 4 inputs per iteration
    for (int u = 0; u < G / 4; u += kUnits) {
      unroll<kUnits>([&](auto i) MINICPM_INLINE_LAMBDA {
        multiply_unit<V, is_int4, M>(panel + 64 * V::kGemmBlocks * i, codes + 4 * M * i, sum);
      });
      panel += 64 * V::kGemmBlocks * kUnits;
      codes += 4 * M * kUnits;
    }
  }
};

// A slab of a panel times a tile of M tokens. Integer sums of a group and float sums of all groups stay in registers:
// storing a register takes as long as two products. Between slabs they are stored in sums (M, rows). Never inlined:
// together with the caller's variables, AVX2 has too few registers.
template <class V, bool is_int4, int M>
static __attribute__((noinline)) void panel_tile(const Slab& slab, int G, const Activations& a, int tile, float* sums,
                                                 int block, int blocks, const Output& to) {
  constexpr int kBlocks = V::kGemmBlocks, kStart = is_int4 ? 1 : V::kOffset8 / kNibbleOffset;
  const uint8_t* panel = slab.codes;
  const float* panel_scales = slab.scales;
  const int8_t* codes = a.tile_codes(tile) + static_cast<size_t>(slab.first_group) * G * M;
  const float* scales = a.tile_scales(tile) + static_cast<size_t>(slab.first_group) * M;
  const int32_t* starts = a.tile_starts(tile) + static_cast<size_t>(slab.first_group) * M;
  typename V::F total[M][kBlocks];
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA {
      total[m][b] = slab.is_first ? V::zero() : V::load(sums + (m * kBlocks + b) * kLanes);
    });
  });
  for (int g = 0; g < slab.groups; ++g) {
    typename V::I sum[M][kBlocks];
    unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
      unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA { sum[m][b] = V::set1_int(kStart * starts[m]); });
    });
    GroupSums<V, is_int4, M>::add(panel, codes, G, sum);
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA {
      const typename V::F s = V::load(panel_scales + kLanes * b);
      unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
        total[m][b] = V::add(total[m][b], V::mul(V::mul(V::to_float(sum[m][b]), s), V::set1(scales[m])));
      });
    });
    panel_scales += kLanes * kBlocks;
    scales += M;
    starts += M;
  }
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<kBlocks>([&](auto b) MINICPM_INLINE_LAMBDA {
      if (!slab.is_last) {
        V::store(sums + (m * kBlocks + b) * kLanes, total[m][b]);
      } else if (b < blocks && tile * a.width + m < a.tokens) {
        write_rows<V>(to, tile * a.width + m, (block + b) * kLanes, total[m][b]);
      }
    });
  });
}

// Groups [first, first + count) of a block, as bytes: [input / 4][kGemmBlocks][64], and their scales as floats.
template <class V>
static void unpack_block(const Weight& weight, const uint8_t* block, int first, int count, uint8_t* panel,
                         float* panel_scales) {
  constexpr int kBlocks = V::kGemmBlocks;
  const size_t group_bytes = weight.group_bytes(), code_bytes = weight.code_bytes();
  for (int i = 0; i < count; ++i) {
    const uint8_t* from = block + (first + i) * group_bytes;
    uint8_t* to = panel + static_cast<size_t>(i) * weight.group_size * kLanes * kBlocks;
    for (size_t unit = 0; unit < code_bytes / 64; ++unit) {
      const typename V::Bytes bytes = V::load_bytes(from + 64 * unit);
      if (weight.kind == WeightKind::kInt4) {
        V::store_bytes(to + 2 * unit * 64 * kBlocks, V::low_nibbles(bytes));
        V::store_bytes(to + (2 * unit + 1) * 64 * kBlocks, V::high_nibbles(bytes));
      } else {
        V::store_bytes(to + unit * 64 * kBlocks, bytes);
      }
    }
    V::store(panel_scales + i * kLanes * kBlocks, load_scales<V>(from + code_bytes, weight.has_half_scales));
  }
}

template <class V>
static void linear_panels(const Weight& weight, const Activations& a, int first, int last, const Output& to,
                          uint8_t* panel, float* sums) {
  constexpr int kBlocks = V::kGemmBlocks, kRows = kBlocks * kLanes;
  float* panel_scales = reinterpret_cast<float*>(panel + static_cast<size_t>(kRows) * kPanelFeatures);
  const int G = weight.group_size, groups = weight.groups(), slabs = ceil_div(groups, kPanelFeatures / G);
  const size_t tile_floats = static_cast<size_t>(a.width) * kRows;
  for (int block = first; block < last; block += kBlocks) {
    const int blocks = smaller(kBlocks, last - block);
    for (int i = 0; i < slabs; ++i) {
      const int begin = groups * i / slabs, end = groups * (i + 1) / slabs;  // of nearly equal size
      for (int b = 0; b < kBlocks; ++b) {
        // If the weight ends inside a panel, its last block fills the rest; those sums are ignored.
        const uint8_t* from = weight.data + (block + smaller(b, blocks - 1)) * weight.block_bytes();
        unpack_block<V>(weight, from, begin, end - begin, panel + 64 * b, panel_scales + kLanes * b);
      }
      const Slab slab{panel, panel_scales, begin, end - begin, i == 0, i == slabs - 1};
      for (int tile = 0; tile < a.tiles(); ++tile) {
        with_constant(typename V::GemmWidths{}, a.tile_width(tile), [&](auto m) {
          float* y = sums + tile * tile_floats;
          if (weight.kind == WeightKind::kInt4) {
            panel_tile<V, true, m>(slab, G, a, tile, y, block, blocks, to);
          } else {
            panel_tile<V, false, m>(slab, G, a, tile, y, block, blocks, to);
          }
        });
      }
    }
  }
}

// 16 numbers of a row of a float weight from column k on; zeros beyond its end.
template <class V>
static MINICPM_INLINE typename V::F load_weights(const Weight& weight, const uint8_t* row, int k) {
  const int bytes = weight.number_bytes();
  alignas(64) uint8_t tail[kLanes * 4];
  const uint8_t* from = row + static_cast<size_t>(k) * bytes;
  if (k + kLanes > weight.columns) {
    std::memset(tail, 0, sizeof tail);
    std::memcpy(tail, from, static_cast<size_t>(weight.columns - k) * bytes);
    from = tail;
  }
  if (weight.kind == WeightKind::kFloat) return V::load(reinterpret_cast<const float*>(from));
  const uint16_t* words = reinterpret_cast<const uint16_t*>(from);
  return weight.kind == WeightKind::kHalf ? V::load_half(words) : V::load_bfloat16(words);
}

// The operands of float weights; a step takes every lane's next inputs: bfloat16 in pairs of inputs, in
// one or two parts depending on the instruction set, binary16 and binary32 as single inputs.
template <class V, WeightKind kind>
struct FloatOperand {
  static constexpr int kStep = kLanes, kParts = 1;  // inputs of a step, and its parts
  using Input = float;
  using Loaded = typename V::F;

  template <int part>
  static MINICPM_INLINE Loaded input(const float* x) {
    return V::load(x);
  }
  template <int part>
  static MINICPM_INLINE Loaded weight(const uint8_t* from) {
    if constexpr (kind == WeightKind::kHalf) return V::load_half(reinterpret_cast<const uint16_t*>(from));
    return V::load(reinterpret_cast<const float*>(from));
  }
  static MINICPM_INLINE typename V::F add_product(typename V::F sum, Loaded w, Loaded x) {
    return V::add(sum, V::mul(w, x));
  }
};

template <class V>
struct FloatOperand<V, WeightKind::kBfloat16> {
  static constexpr int kStep = 2 * kLanes, kParts = V::kPairParts;
  using Input = typename V::PairInput;
  using Loaded = typename V::PairPart;

  template <int part>
  static MINICPM_INLINE Loaded input(const Input* x) {
    return V::template input_part<part>(x);
  }
  template <int part>
  static MINICPM_INLINE Loaded weight(const uint8_t* from) {
    return V::template weight_part<part>(reinterpret_cast<const uint16_t*>(from));
  }
  static MINICPM_INLINE typename V::F add_product(typename V::F sum, Loaded w, Loaded x) {
    return V::add_exact_products(sum, w, x);
  }
};

// A range of steps of float rows, and the sums of the steps before: (R, M) vectors for every tile of rows.
struct FloatSlab {
  int first_step, steps;
  bool is_first, is_last;  // of the slabs of a product
  bool is_streamed;        // these weights are not in the cache yet
};

// R rows of a float weight times M tokens: a lane of a sum takes every 16th input, or pair of inputs.
template <class V, WeightKind kind, int R, int M>
static MINICPM_INLINE void row_tile(const Weight& weight, const FloatSlab& slab,
                                    const typename FloatOperand<V, kind>::Input* x, size_t stride, int n, float* sums,
                                    float* out, const Output& to) {
  using Operand = FloatOperand<V, kind>;
  constexpr int kStepBytes = Operand::kStep * (kind == WeightKind::kFloat ? 4 : 2);
  const size_t row_bytes = weight.row_bytes();
  const uint8_t* row = weight.data + n * row_bytes + static_cast<size_t>(slab.first_step) * kStepBytes;
  x += static_cast<size_t>(slab.first_step) * Operand::kStep;
  typename V::F sum[M][R];
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
      sum[m][r] = slab.is_first ? V::zero() : V::load(sums + (m * R + r) * kLanes);
    });
  });
  const auto step = [&](const uint8_t* from, size_t apart) MINICPM_INLINE_LAMBDA {
    unroll<Operand::kParts>([&](auto part) MINICPM_INLINE_LAMBDA {
      typename Operand::Loaded w[R];
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { w[r] = Operand::template weight<part>(from + r * apart); });
      unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
        const typename Operand::Loaded one = Operand::template input<part>(x + m * stride);
        unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { sum[m][r] = Operand::add_product(sum[m][r], w[r], one); });
      });
    });
    x += Operand::kStep;
  };
  if (slab.is_streamed) {
    for (int i = 0; i < slab.steps; ++i, row += kStepBytes) {
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
        __builtin_prefetch(row + r * row_bytes + kFarPrefetchBytes, 0, 2);
        __builtin_prefetch(row + r * row_bytes + kNearPrefetchBytes);
      });
      step(row, row_bytes);
    }
  } else {
    for (int i = 0; i < slab.steps; ++i, row += kStepBytes) step(row, row_bytes);
  }
  if (!slab.is_last) {
    unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
      unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA { V::store(sums + (m * R + r) * kLanes, sum[m][r]); });
    });
    return;
  }
  const int rest = weight.columns % Operand::kStep;
  if (rest > 0) {
    alignas(64) uint8_t tail[R][kStepBytes] = {};
    for (int r = 0; r < R; ++r) {
      std::memcpy(tail[r], row + r * row_bytes, static_cast<size_t>(rest) * kStepBytes / Operand::kStep);
    }
    step(tail[0], kStepBytes);
  }
  unroll<M>([&](auto m) MINICPM_INLINE_LAMBDA {
    unroll<R>([&](auto r) MINICPM_INLINE_LAMBDA {
      float& y = out[m * to.stride + n + r];
      const float product = V::fold(sum[m][r]);
      y = to.is_residual ? y + product * to.residual_scale : product;
    });
  });
}

// The part of M tokens' inputs that fits in the L1 cache together with the rows that they are multiplied with.
constexpr int kFloatSlabBytes = 36 << 10;

template <class V, WeightKind kind>
static void linear_rows_of(const Weight& weight, const typename FloatOperand<V, kind>::Input* x, size_t stride,
                           int tokens, int first, int last, const Output& to, float* sums) {
  using Operand = FloatOperand<V, kind>;
  constexpr int kRows = V::kFloatRows, kTokens = V::kFloatTokens;
  constexpr int kSlabSteps = kFloatSlabBytes / (kTokens * Operand::kStep * static_cast<int>(sizeof *x));
  const int steps = weight.columns / Operand::kStep;
  const int slabs = tokens > kTokens ? larger(1, ceil_div(steps, kSlabSteps)) : 1;
  for (int token = 0; token < tokens; token += kTokens) {
    const auto* inputs = x + static_cast<size_t>(token) * stride;
    float* out = to.out + static_cast<size_t>(token) * to.stride;
    for (int i = 0; i < slabs; ++i) {
      const int begin = steps * i / slabs, end = steps * (i + 1) / slabs;
      const FloatSlab slab{begin, end - begin, i == 0, i == slabs - 1, token == 0};
      with_constant(std::make_integer_sequence<int, kTokens>{}, smaller(kTokens, tokens - token) - 1, [&](auto more) {
        constexpr int M = more + 1;
        float* kept = sums;
        int n = first;
        for (; n + kRows <= last; n += kRows, kept += M * kRows * kLanes) {
          row_tile<V, kind, kRows, M>(weight, slab, inputs, stride, n, kept, out, to);
        }
        for (; n < last; ++n, kept += M * kLanes) {
          row_tile<V, kind, 1, M>(weight, slab, inputs, stride, n, kept, out, to);
        }
      });
    }
  }
}

// Rows [first, last), few enough to stay in the cache, times all tokens.
template <class V>
static void linear_rows(const Weight& weight, const FloatInputs& x, int tokens, int first, int last, const Output& to,
                        float* sums) {
  switch (weight.kind) {
    case WeightKind::kBfloat16: {
      auto* pairs = static_cast<typename V::PairInput*>(x.pairs);
      return linear_rows_of<V, WeightKind::kBfloat16>(weight, pairs, x.pair_stride, tokens, first, last, to, sums);
    }
    case WeightKind::kHalf:
      return linear_rows_of<V, WeightKind::kHalf>(weight, x.floats, x.stride, tokens, first, last, to, sums);
    default:
      return linear_rows_of<V, WeightKind::kFloat>(weight, x.floats, x.stride, tokens, first, last, to, sums);
  }
}

template <class V>
static void prepare_pairs(const float* x, int first, int last, const FloatInputs& to, int token) {
  auto* pairs = static_cast<typename V::PairInput*>(to.pairs) + static_cast<size_t>(token) * to.pair_stride;
  for (int k = first; k < last; k += 2 * kLanes) {
    uint32_t words[2 * kLanes] = {};
    for (int i = 0; i < smaller(2 * kLanes, last - k); ++i) {
      words[i] = static_cast<uint32_t>(bfloat16_from_float(x[k + i])) << 16;
    }
    V::store_pairs(words, pairs + k);
  }
}

template <class V>
static void embed(const Weight& weight, int id, float scale, float* out) {
  const int K = weight.columns;
  if (!weight.is_integer()) {
    const uint8_t* row = weight.data + static_cast<size_t>(id) * weight.row_bytes();
    for (int k = 0; k < K; k += kLanes) {
      float values[kLanes];
      V::store(values, V::mul(load_weights<V>(weight, row, k), V::set1(scale)));
      for (int i = 0; i < smaller(kLanes, K - k); ++i) out[k + i] = values[i];
    }
    return;
  }
  const uint8_t* block = weight.data + id / kLanes * weight.block_bytes();
  const int lane = id % kLanes, G = weight.group_size;
  for (int k = 0; k < K; ++k) {
    const uint8_t* group = block + k / G * weight.group_bytes();
    const uint8_t* scales = group + weight.code_bytes();
    const int j = k % G;
    int code;
    if (weight.kind == WeightKind::kInt4) {
      const uint8_t byte = group[j / 8 * 64 + lane * 4 + j % 4];
      code = (j % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    } else {
      code = group[j / 4 * 64 + lane * 4 + j % 4] - 128;
    }
    float s;
    if (weight.has_half_scales) {
      uint16_t word;
      std::memcpy(&word, scales + 2 * lane, sizeof word);
      s = float_from_half(word);
    } else {
      std::memcpy(&s, scales + 4 * lane, sizeof s);
    }
    out[k] = (static_cast<float>(code) * s) * scale;
  }
}
