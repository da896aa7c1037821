// Which instruction sets this build has and this machine runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

// Names that can run here, the fastest first.
std::vector<std::string> runnable_isas();

// The kernels of a name, or nullptr where the build or the machine has none of it.
const Kernels* find_kernels(const std::string& name);
