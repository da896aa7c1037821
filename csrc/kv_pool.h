// Keys and values of all texts in blocks of 16 tokens, as one piece of address space that is taken once and never
// grows. The pool owns the memory and knows nothing of texts: which block holds which tokens of which text, and who
// shares one, is engine/cache/blocks.py's. Blocks lie [layer][block][head of keys and values], so a layer of a block is
// one run of bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

class KvPool {
 public:
  // Takes address space alone: a block takes memory when it is first written. std::bad_alloc where there is none.
  KvPool(CacheKind kind, int layers, int kv_heads, int head_dim, int blocks);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  int blocks() const { return blocks_; }
  CacheKind kind() const { return kind_; }
  bool fits(int layers, int kv_heads, int head_dim) const {
    return layers == layers_ && kv_heads == kv_heads_ && head_dim == head_dim_;
  }

  // One head of one layer of a text; `table` holds the text's blocks in order and belongs to the caller.
  HeadCache head(const int32_t* table, int layer, int kv_head) const;

  // All layers of a block into another, which shares no memory with it.
  void copy(int from, int to);
  // Gives the memory of blocks back to the system, as far as whole pages are theirs; what they held is lost.
  void release(std::vector<int32_t> blocks);

 private:
  uint8_t* at(int layer, int block) const;

  const CacheKind kind_;
  const int layers_, kv_heads_, head_dim_, blocks_;
  const size_t head_bytes_, block_bytes_;  // of one layer
  size_t bytes_ = 0;
  uint8_t* data_ = nullptr;
};
