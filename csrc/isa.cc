#include "isa.h"

#include <algorithm>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels* (*kernels)();
  bool (*runs)();
};

#if defined(__x86_64__)

// The builtins also ask whether the system saves the registers.
bool runs_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Intel's processors take two cycles for VDPBF16PS (Emerald Rapids: 1.4e9 a second of a core, of single additions with
// products 5.8e9), so what single ones do is faster there; the bits are the same.
bool runs_avx512bf16() { return runs_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
bool prefers_avx512bf16() { return runs_avx512bf16() && !__builtin_cpu_is("intel"); }

bool runs_avx2() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kF16c = 1u << 29;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
         (ecx & kF16c);
}

bool runs_avxvnni() {
#ifdef MINICPM_AVXVNNI_AS_AVX512
  return runs_avx512vnni();
#else
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAvxVnni = 1u << 4;
  return runs_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni);
#endif
}

#elif defined(__aarch64__)

#if defined(__APPLE__)
bool has_feature(const char* name) {
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname(name, &has, &size, nullptr, 0) == 0 && has != 0;
}
#endif

bool runs_neondot() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return getauxval(AT_HWCAP) & kDotProduct;
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_DotProd");
#else
  return false;
#endif
}

bool runs_neoni8mm() {
#if defined(__linux__)
  constexpr unsigned long kMatrixProduct = 1ul << 13;  // HWCAP2_I8MM
  return runs_neondot() && (getauxval(AT_HWCAP2) & kMatrixProduct);
#elif defined(__APPLE__)
  return runs_neondot() && has_feature("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}

#endif

bool runs_anywhere() { return true; }

constexpr Choice kChoices[] = {
#if defined(__x86_64__)
    {"avx512bf16", kernels_avx512bf16, prefers_avx512bf16},
    {"avx512vnni", kernels_avx512vnni, runs_avx512vnni},
    {"avx512bf16", kernels_avx512bf16, runs_avx512bf16},
    {"avxvnni", kernels_avxvnni, runs_avxvnni},
    {"avx2", kernels_avx2, runs_avx2},
#elif defined(__aarch64__)
    {"neoni8mm", kernels_neoni8mm, runs_neoni8mm},
    {"neondot", kernels_neondot, runs_neondot},
#endif
    {"generic", kernels_generic, runs_anywhere},
};

}  // namespace

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Choice& choice : kChoices) {
    const bool is_new = std::find(names.begin(), names.end(), choice.name) == names.end();
    if (is_new && choice.runs()) names.emplace_back(choice.name);
  }
  return names;
}

const Kernels* find_kernels(const std::string& name) {
  for (const Choice& choice : kChoices) {
    if (name == choice.name && choice.runs()) return choice.kernels();
  }
  return nullptr;
}
