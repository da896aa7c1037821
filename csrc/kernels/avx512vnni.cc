#include "kernels/table.h"
#include "kernels/vec_avx512vnni.h"

const Kernels* kernels_avx512vnni() { return kernel_table<Avx512Vnni>("avx512vnni"); }
