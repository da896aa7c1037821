#include "kernels/table.h"
#include "kernels/vec_avx2.h"

const Kernels* kernels_avx2() { return kernel_table<Avx2>("avx2"); }
