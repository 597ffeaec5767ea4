// One time step of the gated LRU for one channel, forward and backward, host and device.
// Formulas and names: trecvit_kernels/ops/gated_lru/op.py; l = log|a|, phi = phase, G = dLoss/dh_t.
#pragma once

#include "../common/math.h"
#include "../common/number.h"

namespace trecvit {
namespace {

constexpr double kDecayExponent = 8.0;      // c of Griffin's RG-LRU
constexpr double kMaxSqrtSlope = 1000.0;    // RecurrentGemma's bound on d sqrt

// log2|a| per unit of r, as gates_of wants it, on a GPU. In single precision for single precision: a double costs a
// consumer GPU 64 times as much, and libm's float functions are exact to an ulp.
template <class S>
TRECVIT_INLINE S decay_per_gate(S a_param) {
  const S softplus = a_param > S(0) ? a_param + ::log1p(::exp(-a_param)) : ::log1p(::exp(a_param));
  return S(-kDecayExponent * kLog2E) * softplus;
}

// Gates of one step. `a` is the decay's magnitude in the real case.
template <class S>
struct Gates {
  S i, r, magnitude, beta;
};

// Magnitude and normaliser from the gates i and r. decay = -c softplus(a_param) log2(e), so that |a| = 2^(decay r).
// A reset step has a = 0 and beta = 1. The sigmoids come in ready: computed in a loop of their own they leave the
// processor shorter chains to overlap.
// `convex` is a constant on the CPU (below); a GPU, where code is dear, selects at run time.
template <class S>
TRECVIT_INLINE Gates<S> gates_of(S i, S r, S decay, bool reset, bool convex) {
  const ExpPair<S> e = exp2_pair(decay * r);
  // 1 - |a|^2 = (1 - |a|) (2 - (1 - |a|)) with 1 - |a| = -expm1(l): exact where |a| is close to 1.
  const S gap = S(0) - e.expm1;  // a subtraction, since -0 would make the slope of the root infinite
  const S beta = select(convex, gap, square_root(gap * (S(2) - gap)));
  return {i, r, select(reset, S(0), e.exp), select(reset, S(1), beta)};
}
template <class S, bool Convex>
TRECVIT_INLINE Gates<S> gates_of(S i, S r, S decay, bool reset) {
  return gates_of(i, r, decay, reset, Convex);
}

template <class S, bool Complex>
TRECVIT_INLINE Number<S> decay_of(Gates<S> g, S theta) {
  if constexpr (Complex) {
    const SinCos<S> phase = sin_cos(theta * g.r);
    return {g.magnitude * phase.cos, g.magnitude * phase.sin};
  } else {
    return {g.magnitude, S(0)};
  }
}

// Gradients of one step; dl and dphi still have to be summed into the parameters: da_param += r dl, da_imag += r dphi.
template <class S>
struct StepGradient {
  Number<S> dx;
  S dgate_x, dgate_a, r_dl, r_dphi;
};

template <class S, bool Complex>
TRECVIT_INLINE StepGradient<S> step_backward(Gates<S> g, Number<S> a, Number<S> x, Number<S> h_before,
                                             Number<S> G, S decay, S theta, bool reset, bool convex) {
  StepGradient<S> d;
  const S scale = g.beta * g.i;
  S x_G = x.re * G.re;
  if constexpr (Complex) x_G += x.im * G.im;
  d.dx = {scale * G.re, scale * G.im};
  d.dgate_x = g.beta * x_G * g.i * (S(1) - g.i);

  // conj(a h_{t-1}) G: its real part is dl through a, its imaginary part dphi.
  const Number<S> ah = advance<S, Complex>(a, h_before, {S(0), S(0)});
  S dl = ah.re * G.re, dphi = S(0);
  if constexpr (Complex) {
    dl += ah.im * G.im;
    dphi = ah.re * G.im - ah.im * G.re;
  }
  const S inverse = reciprocal(g.beta), bound = S(2 * kMaxSqrtSlope);
  const S slope =  // dbeta / dl
      select(convex, -g.magnitude, -g.magnitude * g.magnitude * (inverse > bound ? bound : inverse));
  dl += g.i * x_G * slope;
  dl = select(reset, S(0), dl);
  dphi = select(reset, S(0), dphi);
  S dr = S(kLn2) * decay * dl;
  if constexpr (Complex) dr += theta * dphi;
  d.dgate_a = dr * g.r * (S(1) - g.r);
  d.r_dl = g.r * dl;
  d.r_dphi = g.r * dphi;
  return d;
}
template <class S, bool Complex, bool Convex>
TRECVIT_INLINE StepGradient<S> step_backward(Gates<S> g, Number<S> a, Number<S> x, Number<S> h_before,
                                             Number<S> G, S decay, S theta, bool reset) {
  return step_backward<S, Complex>(g, a, x, h_before, G, decay, theta, reset, Convex);
}

}  // namespace
}  // namespace trecvit
