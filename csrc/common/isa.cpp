#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace trecvit {
namespace {

constexpr const char* kNames[] = {
#define TRECVIT_NAME_(name) #name,
    TRECVIT_FOR_EACH_ISA(TRECVIT_NAME_)
#undef TRECVIT_NAME_
};

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows f16c. Its registers are AVX's.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// __builtin_cpu_supports asks the processor and, for the wide registers, whether the operating system saves them.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

std::string names_of(bool only_supported) {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (only_supported && !cpu_supports(Isa(i))) continue;
    names += (names.empty() ? "" : ", ") + std::string(kNames[i]);
  }
  return names;
}

Isa choose() {
  const char* wanted = std::getenv("TRECVIT_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    for (int i = 0; i < kIsaCount; ++i) {
      if (std::strcmp(wanted, kNames[i]) != 0) continue;
      if (cpu_supports(Isa(i))) return Isa(i);
      throw std::runtime_error("TRECVIT_ISA: this machine cannot run '" + std::string(wanted) + "'; it can run " +
                               names_of(true));
    }
    throw std::invalid_argument("TRECVIT_ISA: expected one of " + names_of(false) + ", got '" + std::string(wanted) +
                                "'");
  }
  for (int i = kIsaCount - 1; i > 0; --i) {
    if (cpu_supports(Isa(i))) return Isa(i);
  }
  return Isa(0);
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

bool cpu_supports(Isa isa) {
  switch (isa) {
#ifdef TRECVIT_HAS_ISA_avx2
    case Isa::avx2:
      return has_avx2();
#endif
#ifdef TRECVIT_HAS_ISA_avx512
    case Isa::avx512:
      return has_avx512();
#endif
    default:
      return true;  // the lowest set is what the architecture guarantees
  }
}

Isa active_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace trecvit
