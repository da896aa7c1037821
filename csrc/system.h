// What the engine asks of the operating system where C++ has no words for it. system_posix.cc answers on Linux and
// macOS, system_windows.cc on Windows; nothing else in csrc/ knows which it is.
#pragma once

#include <cstddef>

// Memory on cache lines of its own, in huge pages where it is large and the system has them. What it holds is unknown.
// std::bad_alloc where there is none.
void* allocate_memory(size_t bytes);
void free_memory(void* data);

// Address space full of zeros, in huge pages where the system has them: a page takes memory when it is first written.
// std::bad_alloc where there is none.
void* reserve_pages(size_t bytes);
void unreserve_pages(void* data, size_t bytes);  // all that was reserved
// Gives back the memory of the whole pages inside a part of it. What they held is lost; they can be written again.
void discard_pages(void* first, size_t bytes);

// Of 64-bit ARM processors, which the system alone can be asked about.
bool has_dot_products();
bool has_matrix_products();
