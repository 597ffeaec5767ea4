// Storage types of tensors and their conversion to the type of the state (float, or double for double).
// 16-bit conversions are integer arithmetic without branches: they vectorise on every instruction set. A GPU has
// instructions for them.
#pragma once

#include "math.h"

namespace trecvit {

// Codes that the Python side passes; the order is fixed there (DTYPE_CODES in ops/_compiled.py).
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kComplex64 = 4, kComplex128 = 5 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
template <class S>
struct ComplexOf {  // PyTorch's complex layout
  S re, im;
};

namespace {

template <class T>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <class S>
struct StateOf<ComplexOf<S>> {
  using type = S;  // of each part
};

TRECVIT_INLINE float load(float x) { return x; }
TRECVIT_INLINE double load(double x) { return x; }
TRECVIT_INLINE float load(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

TRECVIT_INLINE float load(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent bias and makes subnormals normal.
  const float scaled = bits_to_float(magnitude) * 5.192296858534828e33f;
  const uint32_t special = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : float_to_bits(scaled);
  return bits_to_float(special | (uint32_t(x.bits & 0x8000u) << 16));
#endif
}

TRECVIT_INLINE void store(float& to, float x) { to = x; }
TRECVIT_INLINE void store(double& to, double x) { to = x; }

// Round to nearest even; NaN stays a (quiet) NaN.
TRECVIT_INLINE void store(BFloat16& to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}

TRECVIT_INLINE void store(Float16& to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal: rebias and round to even. Subnormal: adding 0.5 lets the adder do the rounding at 2^-24.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  to.bits = uint16_t(sign | half);
#endif
}

}  // namespace
}  // namespace trecvit
