// Keys and values of one text in blocks of 16 tokens. A sequence owns its memory: chunks of a few blocks each, mapped
// when the text grows into them, so that a step allocates nothing but once in kChunkTokens tokens, before it computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

class Sequence {
 public:
  static constexpr int kChunkBlocks = 4;  // a head's tokens lie 64 together, 8.5 KB for a head of 64
  static constexpr int kChunkTokens = kChunkBlocks * kLanes;

  Sequence(int layers, int kv_heads, int head_dim, int64_t rope_length);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  int length() const { return length_; }
  int64_t rope_length() const { return rope_length_; }
  bool fits(int layers, int kv_heads, int head_dim) const {
    return layers == layers_ && kv_heads == kv_heads_ && head_dim == head_dim_;
  }

  // Forgets the tokens from `length` on; their memory stays for the next ones.
  void truncate(int length) { length_ = length; }
  // Makes room for `length` tokens; std::bad_alloc where there is none, and nothing has changed then.
  void reserve(int length);
  // The tokens written behind the held ones are held now.
  void extend(int tokens) { length_ += tokens; }

  HeadCache head(int layer, int kv_head) const;

 private:
  const int layers_, kv_heads_, head_dim_;
  const int64_t rope_length_;
  const size_t head_bytes_, chunk_bytes_;
  int length_ = 0;
  std::vector<uint8_t*> chunks_;
};
