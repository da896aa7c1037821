#include "kernels/table.h"
#include "kernels/vec_avx512bf16.h"

const Kernels* kernels_avx512bf16() { return kernel_table<Avx512Bf16>("avx512bf16"); }
