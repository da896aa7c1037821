// The table of one Vec's kernels; included by one file per instruction set, each compiled with its own flags.
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/peaks.h"
#include "kernels/sampling.h"

template <class V>
static const Kernels* kernel_table(const char* name) {
  static_assert(kPanelFeatures % kLargestGroup == 0);
  static const Kernels table = {name,
                                V::kDirectWidth,
                                V::kGemmWidth,
                                V::kGemmBlocks,
                                V::kFloatTokens,
                                embed<V>,
                                rms_norm<V>,
                                quantize<V>,
                                linear_direct<V>,
                                linear_panels<V>,
                                prepare_pairs<V>,
                                linear_rows<V>,
                                silu_multiply<V>,
                                file_keys_and_values<V>,
                                attend<V>,
                                divide<V>,
                                weigh<V>,
                                find_buckets<V>,
                                read_words,
                                multiply_bytes<V>};
  return &table;
}
