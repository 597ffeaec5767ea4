// Elementary functions for the inner loops, shared by host and device.
//
// The float versions are branch-free straight-line code, so that the compiler vectorises any loop that calls
// them; each has a relative error of a few ulp. The double versions call libm: float64 is for checking.
// NaN propagates through all of them. A GPU has exp2, 1/x and the root in its special function units, to two ulp.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define TRECVIT_INLINE __host__ __device__ __forceinline__
#else
#define TRECVIT_INLINE inline __attribute__((always_inline))
#endif

// Before a loop whose iterations are independent. Not `omp simd`: GCC then keeps the small structs of the loop's body in
// memory and does not vectorise it.
#if defined(__clang__)
#define TRECVIT_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define TRECVIT_VECTORIZE _Pragma("GCC ivdep")
#endif

namespace trecvit {

// Where arguments are clamped. Weak on a CPU, so that the optimiser does not know the values: x < bound ? bound : x is
// then one instruction, while beside a literal GCC compares and blends.
struct Bounds {
  float least_exponent = -126.0f, least_gate = -88.8f, largest_gate = 87.3f;
};
#if defined(__CUDA_ARCH__)
constexpr Bounds kBounds;
#else
extern const Bounds kBounds __attribute__((weak, visibility("hidden")));
const Bounds kBounds;
#endif

namespace {  // internal linkage: every instruction set has its own copy

TRECVIT_INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TRECVIT_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// condition ? yes : no for a condition that is the same for the whole loop. By bit masks: a branch here would keep
// the compiler from vectorising the loop, and arithmetic would let the NaN of the other value through.
TRECVIT_INLINE float select(bool condition, float yes, float no) {
#if defined(__CUDA_ARCH__)
  return condition ? yes : no;  // one instruction there
#endif
  const uint32_t mask = 0u - uint32_t(condition);
  return bits_to_float((float_to_bits(yes) & mask) | (float_to_bits(no) & ~mask));
}
TRECVIT_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }

// 2^t and 2^t - 1 from one range reduction; the second keeps its relative accuracy near t = 0.
template <class S>
struct ExpPair {
  S exp, expm1;
};

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.69314718055994531;

// t + kRoundToInteger rounds t to an integer n and leaves n + 127, the exponent of 2^n, in the lowest bits.
constexpr float kRoundToInteger = 12582912.0f + 127.0f;  // 1.5 * 2^23 + bias

// 2^t = scale (1 + p) for t = n + f with |f| <= 1/2 and rounded = t + kRoundToInteger. p = f q(f), q minimax to 1e-8.
struct Reduced {
  float scale, p;
};

TRECVIT_INLINE Reduced exp2_reduced(float rounded, float f) {
  float q = 1.5403513e-4f;
  q = q * f + 1.33907355e-3f;
  q = q * f + 9.6182375e-3f;
  q = q * f + 5.55035743e-2f;
  q = q * f + 2.40226498e-1f;
  q = q * f + 6.93147188e-1f;
  return {bits_to_float(float_to_bits(rounded) << 23), q * f};
}

// For t <= 0 (or NaN). Below -126 the pair is (2^-126, -1).
TRECVIT_INLINE ExpPair<float> exp2_pair(float t) {
  t = t < kBounds.least_exponent ? kBounds.least_exponent : t;
  const float rounded = t + kRoundToInteger;
  const Reduced e = exp2_reduced(rounded, t - (rounded - kRoundToInteger));
  return {e.scale * e.p + e.scale, e.scale * e.p + (e.scale - 1.0f)};
}

TRECVIT_INLINE ExpPair<double> exp2_pair(double t) {
  const double x = t * kLn2;
  return {::exp(x), ::expm1(x)};
}

#if defined(__CUDA_ARCH__)
// Subnormal results are 0, subnormal operands count as 0.
__device__ __forceinline__ float unit_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float unit_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float unit_square_root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// exp(-x), for sigmoids: infinite from x = -88.4 down, 1e-38 (on a GPU 0) from 87.3 up.
TRECVIT_INLINE float exp_minus(float x) {
#if defined(__CUDA_ARCH__)
  return unit_exp2(x * float(-kLog2E));
#else
  x = x < kBounds.least_gate ? kBounds.least_gate : x;
  x = x > kBounds.largest_gate ? kBounds.largest_gate : x;
  const float rounded = x * float(-kLog2E) + kRoundToInteger;
  // One fused multiply-add: the error of the constant alone moves exp by |x| 2^-26.
  const Reduced e = exp2_reduced(rounded, x * float(-kLog2E) - (rounded - kRoundToInteger));
  return e.scale * (1.0f + e.p);  // not scale p + scale: p may be negative where scale is infinite
#endif
}
TRECVIT_INLINE double exp_minus(double x) { return ::exp(-x); }

TRECVIT_INLINE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return unit_reciprocal(x);
#else
  return 1.0f / x;
#endif
}
TRECVIT_INLINE double reciprocal(double x) { return 1.0 / x; }

template <class S>
TRECVIT_INLINE S sigmoid(S x) {
  return reciprocal(S(1) + exp_minus(x));
}

TRECVIT_INLINE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return unit_square_root(x);
#else
  return ::sqrtf(x);
#endif
}
TRECVIT_INLINE double square_root(double x) { return ::sqrt(x); }

template <class S>
struct SinCos {
  S sin, cos;
};

// Three-part reduction by pi/2, then the two minimax polynomials on [-pi/4, pi/4]. Absolute error below 2e-7 for
// |x| < 1e4; larger phases lose accuracy gradually (a phase is theta * r, of order one).
TRECVIT_INLINE SinCos<float> sin_cos(float x) {
  const float round = 12582912.0f;
  const float shifted = x * 0.636619772367581343f + round;
  const float n = shifted - round;
  float r = x - n * 1.5703125f;
  r = r - n * 4.837512969970703125e-4f;
  r = r - n * 7.549789948768648e-8f;
  const float z = r * r;
  float s = -1.9515295891e-4f;
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * r + r;
  float c = 2.443315711809948e-5f;
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  const uint32_t quadrant = float_to_bits(shifted);
  const float sine = (quadrant & 1u) ? c : s;
  const float cosine = (quadrant & 1u) ? s : c;
  return {bits_to_float(float_to_bits(sine) ^ ((quadrant & 2u) << 30)),
          bits_to_float(float_to_bits(cosine) ^ (((quadrant + 1u) & 2u) << 30))};
}

TRECVIT_INLINE SinCos<double> sin_cos(double x) { return {::sin(x), ::cos(x)}; }

// log(1 + exp(x)) without overflow; once per channel, so libm in double serves both state types.
TRECVIT_INLINE double softplus(double x) { return x > 0 ? x + ::log1p(::exp(-x)) : ::log1p(::exp(x)); }

// gelu_tanh(v) = v sigmoid(2 sqrt(2/pi) (v + 0.044715 v^3)), and its derivative.
template <class S>
struct Gelu {
  S value, slope;
};

template <class S>
TRECVIT_INLINE Gelu<S> gelu_tanh(S v) {
  const S k = S(1.5957691216057308);  // 2 sqrt(2/pi)
  const S square = v * v;
  const S e = exp_minus(k * v * (S(1) + S(0.044715) * square));
  const S s = reciprocal(S(1) + e);
  const S one_minus_s = (e > S(1e38) ? S(1e38) : e) * s;  // without cancellation; s = 0 where e is infinite
  return {v * s, s + v * s * one_minus_s * k * (S(1) + S(3 * 0.044715) * square)};
}

}  // namespace
}  // namespace trecvit
