#include "kernels/table.h"
#include "kernels/vec_generic.h"

const Kernels* kernels_generic() { return kernel_table<Generic>("generic"); }
