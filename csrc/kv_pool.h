// Keys and values of all sequences in blocks of 16 tokens, in one address range that is reserved once and never
// grows. The pool owns the memory. engine/cache/blocks.py decides which block holds which tokens and which
// sequences share it. The layout is [layer][block][head of keys and values], so one layer of a block is
// contiguous.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

class KvPool {
 public:
  // Reserves address space only; a block uses memory once it is written. Throws std::bad_alloc if there is none.
  KvPool(CacheKind kind, int layers, int kv_heads, int head_dim, int blocks);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  int blocks() const { return blocks_; }
  CacheKind kind() const { return kind_; }
  bool fits(int layers, int kv_heads, int head_dim) const {
    return layers == layers_ && kv_heads == kv_heads_ && head_dim == head_dim_;
  }

  // One head of one layer of a sequence; `table` holds its blocks in order and belongs to the caller.
  HeadCache head(const int32_t* table, int layer, int kv_head) const;

  // Copies all layers of a block into another block.
  void copy(int from, int to);
  // Returns the whole pages of these blocks to the system; their contents are lost.
  void release(std::vector<int32_t> blocks);

 private:
  uint8_t* at(int layer, int block) const;

  const CacheKind kind_;
  const int layers_, kv_heads_, head_dim_, blocks_;
  const size_t head_bytes_, block_bytes_;  // of one layer
  size_t bytes_ = 0;
  uint8_t* data_ = nullptr;
};
