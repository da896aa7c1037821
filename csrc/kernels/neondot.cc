#include "kernels/table.h"
#include "kernels/vec_neondot.h"

const Kernels* kernels_neondot() { return kernel_table<NeonDot>("neondot"); }
