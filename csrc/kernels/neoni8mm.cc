#include "kernels/table.h"
#include "kernels/vec_neoni8mm.h"

const Kernels* kernels_neoni8mm() { return kernel_table<NeonI8mm>("neoni8mm"); }
