// The instruction sets that this build contains and this machine supports.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

// The instruction sets that can run on this machine, fastest first.
std::vector<std::string> runnable_isas();

// The kernels of an instruction set, or nullptr if the build or the machine does not have it.
const Kernels* find_kernels(const std::string& name);
