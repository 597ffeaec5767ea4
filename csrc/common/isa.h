// Instruction sets: which are compiled in, which one runs.
//
// A kernel source (csrc/<op>/cpu.cpp) is compiled once per instruction set with TRECVIT_ISA naming it, and puts its
// functions into namespace trecvit::TRECVIT_ISA. A dispatcher builds its table with TRECVIT_FOR_EACH_ISA, whose order
// is that of enum Isa, and indexes it with active_isa().
//
// Kernel sources and the headers they include keep to internal linkage or namespace trecvit::TRECVIT_ISA: a shared
// inline function emitted in an AVX-512 object must never be the one that an older machine runs.
#pragma once

#define TRECVIT_STRINGIFY_(x) #x
#define TRECVIT_STRINGIFY(x) TRECVIT_STRINGIFY_(x)

#ifdef TRECVIT_ISA  // kernel sources only
#define TRECVIT_ISA_NAME TRECVIT_STRINGIFY(TRECVIT_ISA)
#endif

// CMakeLists.txt defines TRECVIT_HAS_ISA_<name> for every set that is compiled.
#ifdef TRECVIT_HAS_ISA_baseline
#define TRECVIT_WITH_BASELINE_(X) X(baseline)
#else
#define TRECVIT_WITH_BASELINE_(X)
#endif
#ifdef TRECVIT_HAS_ISA_avx2
#define TRECVIT_WITH_AVX2_(X) X(avx2)
#else
#define TRECVIT_WITH_AVX2_(X)
#endif
#ifdef TRECVIT_HAS_ISA_avx512
#define TRECVIT_WITH_AVX512_(X) X(avx512)
#else
#define TRECVIT_WITH_AVX512_(X)
#endif
#ifdef TRECVIT_HAS_ISA_neon
#define TRECVIT_WITH_NEON_(X) X(neon)
#else
#define TRECVIT_WITH_NEON_(X)
#endif

// X(name) for every set that is compiled in, lowest first.
#define TRECVIT_FOR_EACH_ISA(X) \
  TRECVIT_WITH_BASELINE_(X) TRECVIT_WITH_AVX2_(X) TRECVIT_WITH_AVX512_(X) TRECVIT_WITH_NEON_(X)

namespace trecvit {

#define TRECVIT_ENUMERATOR_(name) name,
enum class Isa : int { TRECVIT_FOR_EACH_ISA(TRECVIT_ENUMERATOR_) };
#undef TRECVIT_ENUMERATOR_

#define TRECVIT_COUNT_(name) +1
constexpr int kIsaCount = 0 TRECVIT_FOR_EACH_ISA(TRECVIT_COUNT_);
#undef TRECVIT_COUNT_

const char* isa_name(Isa isa);

// Whether the processor and the operating system can run it.
bool cpu_supports(Isa isa);

// The set whose kernels run in this process: the highest that the machine supports, or the one that the environment
// variable TRECVIT_ISA names. Decided at the first call. Throws std::invalid_argument for a name that is not compiled
// in and std::runtime_error for a set that this machine lacks.
Isa active_isa();

}  // namespace trecvit
