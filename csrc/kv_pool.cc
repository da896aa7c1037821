#include "kv_pool.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "system.h"

KvPool::KvPool(CacheKind kind, int layers, int kv_heads, int head_dim, int blocks)
    : kind_(kind),
      layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      blocks_(blocks),
      head_bytes_(head_block_bytes(kind, head_dim)),
      block_bytes_(head_bytes_ * static_cast<size_t>(kv_heads)) {
  const size_t pieces = static_cast<size_t>(layers) * static_cast<size_t>(blocks);
  if (__builtin_mul_overflow(block_bytes_, pieces, &bytes_)) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(reserve_pages(bytes_));
}

KvPool::~KvPool() { unreserve_pages(data_, bytes_); }

uint8_t* KvPool::at(int layer, int block) const {
  const size_t piece = static_cast<size_t>(layer) * static_cast<size_t>(blocks_) + static_cast<size_t>(block);
  return data_ + piece * block_bytes_;
}

HeadCache KvPool::head(const int32_t* table, int layer, int kv_head) const {
  uint8_t* first = at(layer, 0) + head_bytes_ * static_cast<size_t>(kv_head);
  return {first, table, block_bytes_, head_bytes_, ceil_div(head_dim_, kHeadBlock), kind_};
}

void KvPool::copy(int from, int to) {
  for (int layer = 0; layer < layers_; ++layer) std::memcpy(at(layer, to), at(layer, from), block_bytes_);
}

void KvPool::release(std::vector<int32_t> blocks) {
  std::sort(blocks.begin(), blocks.end());
  for (size_t first = 0, last; first < blocks.size(); first = last) {
    // Adjacent blocks are discarded together, which includes the pages that they share.
    for (last = first + 1; last < blocks.size() && blocks[last] <= blocks[last - 1] + 1;) ++last;
    for (int layer = 0; layer < layers_; ++layer) {
      uint8_t* begin = at(layer, blocks[first]);
      discard_pages(begin, static_cast<size_t>(at(layer, blocks[last - 1]) + block_bytes_ - begin));
    }
  }
}
