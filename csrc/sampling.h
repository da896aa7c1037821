// One token drawn from the scores of a whole vocabulary, without sorting it: the token that minicpm/sampling/draw.py's
// draw_reference gives, always the same one (docs/chat-and-sampling.md defines it).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

struct Warpers {
  float temperature;  // above 0
  int64_t top_k;      // 0: off
  double top_p;       // 1: off
  double min_p;       // 0: off
};

// The random number of one token, below 2**53: Philox 4x64-10, key (seed, choice), counter (position, 0, 0, 0).
uint64_t uniform53(uint64_t seed, uint64_t choice, uint64_t position);

// The id at the fraction `uniform` / 2**53 of the warped distribution of scores (count), none of which is NaN; -1 if
// the best score is infinite. The scores are divided by the temperature in place.
int64_t draw(const Kernels& kernels, float* scores, size_t count, const Warpers& warpers, uint64_t uniform);
