#include "packing.h"

#include <cstring>

namespace {

// 8 nibbles in file order to the order of a unit: the first four in the low halves of 4 bytes, the others in the high.
uint32_t interleave_nibbles(uint32_t word) {
  uint32_t low = word & 0xffff, high = word >> 16;
  const auto spread = [](uint32_t x) {
    x = (x | x << 8) & 0x00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f;
  };
  return spread(low) | spread(high) << 4;
}

// Writes one row into its lane of a block. `row` is null for a row of zeros.
void pack_row(const Weight& weight, const uint8_t* row, const uint8_t* scales, uint8_t* block, int lane) {
  const bool is_int4 = weight.kind == WeightKind::kInt4;
  const int per_word = is_int4 ? 8 : 4;
  const uint32_t zeros = is_int4 ? 0x88888888u : 0x80808080u;
  const size_t scale_bytes = weight.has_half_scales ? 2 : 4;
  const int words = weight.group_size / per_word;
  for (int g = 0; g < weight.groups(); ++g, block += weight.group_bytes()) {
    for (int i = 0; i < words; ++i) {
      const int left = weight.columns - (g * weight.group_size + i * per_word);
      uint32_t word = zeros;
      if (row != nullptr && left > 0) {
        std::memcpy(&word, row + static_cast<size_t>(g * words + i) * 4, sizeof word);
        if (left < per_word) {
          const uint32_t kept = (1u << left * (32 / per_word)) - 1;
          word = (word & kept) | (zeros & ~kept);
        }
      }
      if (is_int4) word = interleave_nibbles(word);
      std::memcpy(block + i * 64 + lane * 4, &word, sizeof word);
    }
    uint8_t* scale = block + weight.code_bytes() + lane * scale_bytes;
    if (row == nullptr) {
      std::memset(scale, 0, scale_bytes);
    } else {
      std::memcpy(scale, scales + g * scale_bytes, scale_bytes);
    }
  }
}

}  // namespace

void pack(const Weight& weight, const std::vector<StoredRows>& sources, uint8_t* out) {
  const size_t scale_row_bytes = static_cast<size_t>(weight.groups()) * (weight.has_half_scales ? 2 : 4);
  int row = 0;
  const auto place = [&](const uint8_t* codes, const uint8_t* scales) {
    pack_row(weight, codes, scales, out + row / kLanes * weight.block_bytes(), row % kLanes);
    ++row;
  };
  for (const StoredRows& source : sources) {
    for (int i = 0; i < source.rows; ++i)
      place(source.codes + i * source.row_bytes, source.scales + i * scale_row_bytes);
  }
  while (row % kLanes != 0) place(nullptr, nullptr);
}
