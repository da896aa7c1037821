#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>

#include <cstdint>
#include <new>

#include "system.h"

void* allocate_memory(size_t bytes) {
  constexpr size_t kCacheLine = 64;  // huge pages need a special privilege
  void* data = _aligned_malloc(bytes, kCacheLine);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void free_memory(void* data) { _aligned_free(data); }

// Committed at once: it counts against the commit limit, but a page uses memory only once it is written.
void* reserve_pages(size_t bytes) {
  void* data = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void unreserve_pages(void* data, size_t) { VirtualFree(data, 0, MEM_RELEASE); }

void discard_pages(void* first, size_t bytes) {
  SYSTEM_INFO system;
  GetSystemInfo(&system);
  const uintptr_t page = system.dwPageSize, begin = reinterpret_cast<uintptr_t>(first);
  const uintptr_t whole = (begin + page - 1) / page * page, end = (begin + bytes) / page * page;
  if (whole >= end) return;
  VirtualAlloc(reinterpret_cast<void*>(whole), end - whole, MEM_RESET, PAGE_READWRITE);  // never written to a disk
  VirtualUnlock(reinterpret_cast<void*>(whole), end - whole);  // of what isn't locked: out of the working set
}

bool has_dot_products() {
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which old headers lack
  return IsProcessorFeaturePresent(kDotProduct);
}

bool has_matrix_products() { return false; }  // not queried: the constant exists only in recent SDKs
