#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "system.h"

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;

#if defined(__APPLE__)
constexpr int kDiscard = MADV_FREE;  // MADV_DONTNEED keeps the memory there
#else
constexpr int kDiscard = MADV_DONTNEED;
#endif

// A hint: without huge pages the memory is only slower.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace

void* allocate_memory(size_t bytes) {
  const size_t alignment = bytes < kHugePage ? kCacheLine : kHugePage;
  if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, whole);
  if (data == nullptr) throw std::bad_alloc();
  if (alignment == kHugePage) prefer_huge_pages(data, whole);
  return data;
}

void free_memory(void* data) { std::free(data); }

void* reserve_pages(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  prefer_huge_pages(data, bytes);
  return data;
}

void unreserve_pages(void* data, size_t bytes) { munmap(data, bytes); }

void discard_pages(void* first, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(first);
  const uintptr_t whole = (begin + page - 1) / page * page, end = (begin + bytes) / page * page;
  if (whole < end) madvise(reinterpret_cast<void*>(whole), end - whole, kDiscard);
}

#if defined(__aarch64__) && defined(__linux__)

bool has_dot_products() {
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return getauxval(AT_HWCAP) & kDotProduct;
}

bool has_matrix_products() {
  constexpr unsigned long kMatrixProduct = 1ul << 13;  // HWCAP2_I8MM
  return getauxval(AT_HWCAP2) & kMatrixProduct;
}

#elif defined(__aarch64__) && defined(__APPLE__)

static bool has_feature(const char* name) {
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname(name, &has, &size, nullptr, 0) == 0 && has != 0;
}

bool has_dot_products() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_matrix_products() { return has_feature("hw.optional.arm.FEAT_I8MM"); }

#else

bool has_dot_products() { return false; }
bool has_matrix_products() { return false; }

#endif
