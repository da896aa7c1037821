// From the rows of a compressed-tensors file to blocks of 16 rows (struct Weight).
#pragma once

#include <vector>

#include "kernels/kernels.h"

// The rows of one stored weight: 32-bit words of codes, low bits first, and one scale per group.
struct StoredRows {
  const uint8_t* codes;
  size_t row_bytes;
  const uint8_t* scales;  // (rows, groups), binary16 or binary32 as `weight.has_half_scales` says
  int rows;
};

// Writes `weight.block_bytes()` per 16 rows to `out`: the sources in order, then rows of zeros up to a whole
// block. Codes beyond K become 0, regardless of the file's padding.
void pack(const Weight& weight, const std::vector<StoredRows>& sources, uint8_t* out);
