// Operating system functions that standard C++ lacks. system_posix.cc implements them for Linux and
// macOS, system_windows.cc for Windows; no other file in csrc/ depends on the system.
#pragma once

#include <cstddef>

// Uninitialized memory aligned to cache lines; large blocks use huge pages if the system has them.
// Throws std::bad_alloc if there is none.
void* allocate_memory(size_t bytes);
void free_memory(void* data);

// Zeroed address space, in huge pages if the system has them; a page uses memory once it is written.
// Throws std::bad_alloc if there is none.
void* reserve_pages(size_t bytes);
void unreserve_pages(void* data, size_t bytes);  // the whole reservation
// Returns the whole pages inside a part of it to the system. Their contents are lost; they can be written again.
void discard_pages(void* first, size_t bytes);

// Features of 64-bit ARM processors, which only the operating system reports.
bool has_dot_products();
bool has_matrix_products();
