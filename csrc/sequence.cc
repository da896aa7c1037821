#include "sequence.h"

#include <sys/mman.h>

#include <new>

Sequence::Sequence(int layers, int kv_heads, int head_dim, int64_t rope_length)
    : layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      rope_length_(rope_length),
      head_bytes_(HeadBlock::bytes(ceil_div(head_dim, kHeadBlock)) * kChunkBlocks),
      chunk_bytes_(head_bytes_ * static_cast<size_t>(layers) * static_cast<size_t>(kv_heads)) {}

Sequence::~Sequence() {
  for (uint8_t* chunk : chunks_) munmap(chunk, chunk_bytes_);
}

void Sequence::reserve(int length) {
  while (static_cast<int>(chunks_.size()) * kChunkTokens < length) {
    chunks_.reserve(chunks_.size() + 1);
    void* chunk = mmap(nullptr, chunk_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(chunk, chunk_bytes_, MADV_HUGEPAGE);  // advice: without huge pages it is only slower
#endif
    chunks_.push_back(static_cast<uint8_t*>(chunk));
  }
}

HeadCache Sequence::head(int layer, int kv_head) const {
  const size_t index = static_cast<size_t>(layer) * static_cast<size_t>(kv_heads_) + static_cast<size_t>(kv_head);
  return {chunks_.data(), index * head_bytes_, kChunkBlocks, ceil_div(head_dim_, kHeadBlock)};
}
