// Counts what a process asks of the heap: preloaded before the C library, whose functions it calls.
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

// The C library's own names for what is replaced here.
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *data, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

atomic_long heap_calls;

void *malloc(size_t bytes) {
  atomic_fetch_add(&heap_calls, 1);
  return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
  atomic_fetch_add(&heap_calls, 1);
  return __libc_calloc(count, bytes);
}

void *realloc(void *data, size_t bytes) {
  atomic_fetch_add(&heap_calls, 1);
  return __libc_realloc(data, bytes);
}

void *memalign(size_t alignment, size_t bytes) {
  atomic_fetch_add(&heap_calls, 1);
  return __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **data, size_t alignment, size_t bytes) {
  *data = memalign(alignment, bytes);
  return *data == NULL ? ENOMEM : 0;
}
