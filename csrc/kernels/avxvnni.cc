#include "kernels/table.h"
#include "kernels/vec_avxvnni.h"

const Kernels* kernels_avxvnni() { return kernel_table<AvxVnni>("avxvnni"); }
