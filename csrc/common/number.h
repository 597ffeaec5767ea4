// A real or complex number in registers, host and device. The real case never touches `im`.
#pragma once

#include "math.h"

namespace trecvit {
namespace {

template <class S>
struct Number {
  S re, im;
};

// a h + u
template <class S, bool Complex>
TRECVIT_INLINE Number<S> advance(Number<S> a, Number<S> h, Number<S> u) {
  if constexpr (Complex) {
    return {a.re * h.re - a.im * h.im + u.re, a.re * h.im + a.im * h.re + u.im};
  } else {
    return {a.re * h.re + u.re, S(0)};
  }
}

// conj(a) g
template <class S, bool Complex>
TRECVIT_INLINE Number<S> pull_back(Number<S> a, Number<S> g) {
  if constexpr (Complex) {
    return {a.re * g.re + a.im * g.im, a.re * g.im - a.im * g.re};
  } else {
    return {a.re * g.re, S(0)};
  }
}

}  // namespace
}  // namespace trecvit
