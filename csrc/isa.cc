#include "isa.h"

#include <algorithm>
#include <initializer_list>

#include "system.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels* (*kernels)();
  bool (*runs)();
};

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// Zeros if the processor does not have this leaf.
Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers answer;
  __get_cpuid_count(leaf, subleaf, &answer.eax, &answer.ebx, &answer.ecx, &answer.edx);
  return answer;
}

constexpr bool has(unsigned word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if (!(word >> bit & 1)) return false;
  }
  return true;
}

// Features of the processor whose registers the system saves. Not __builtin_cpu_supports: clang-cl does not link it.
struct Features {
  bool avx2, avxvnni, avx512vnni, avx512bf16, is_intel;

  Features() {
    const Registers first = cpuid(1), seventh = cpuid(7), more = cpuid(7, 1), vendor = cpuid(0);
    const bool saves_any = has(first.ecx, {27});  // OSXSAVE: without it xgetbv is an illegal instruction
    unsigned saved = 0, high = 0;
    if (saves_any) __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const bool saves_ymm = has(saved, {1, 2}), saves_zmm = saves_ymm && has(saved, {5, 6, 7});
    avx2 = saves_ymm && has(first.ecx, {12, 29}) && has(seventh.ebx, {5});                   // FMA, F16C, AVX2
    avx512vnni = saves_zmm && has(seventh.ebx, {16, 17, 30, 31}) && has(seventh.ecx, {11});  // F, DQ, BW, VL; VNNI
    avx512bf16 = avx512vnni && has(more.eax, {5});
#ifdef MINICPM_AVXVNNI_AS_AVX512
    avxvnni = avx512vnni;
#else
    avxvnni = avx2 && has(more.eax, {4});
#endif
    is_intel =
        vendor.ebx == signature_INTEL_ebx && vendor.edx == signature_INTEL_edx && vendor.ecx == signature_INTEL_ecx;
  }
};

// Read once: under a hypervisor every CPUID instruction traps, which is slow.
const Features& features() {
  static const Features found;
  return found;
}

bool runs_avx2() { return features().avx2; }
bool runs_avxvnni() { return features().avxvnni; }
bool runs_avx512vnni() { return features().avx512vnni; }
bool runs_avx512bf16() { return features().avx512bf16; }
// Intel's processors take two cycles for VDPBF16PS (Emerald Rapids: 1.4e9 a second of a core, of single additions with
// products 5.8e9), so binary32 operations are faster there; the bits are the same.
bool prefers_avx512bf16() { return features().avx512bf16 && !features().is_intel; }

#elif defined(__aarch64__)

bool runs_neondot() { return has_dot_products(); }
bool runs_neoni8mm() { return has_dot_products() && has_matrix_products(); }

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
