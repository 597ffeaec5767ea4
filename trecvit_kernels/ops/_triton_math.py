"""Elementary functions of the Triton kernels, on float32 or float64 tiles. NaN propagates through all of them.

The float32 versions rest on what every GPU does in one instruction (2^x, square roots, division to 2 ulp) and on
short polynomials where that is not enough; the float64 versions, for checking, call the full library functions.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); 0 and 1 where the exponential over- or underflows."""
    if x.dtype == tl.float64:
        return 1.0 / (1.0 + tl.exp(-x))
    # The square of 1 / sqrt is as exact as the hardware's division and three instructions shorter.
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root


@triton.jit
def softplus(x):
    """log(1 + exp(x)), exact to a few ulp also where it is tiny. Once per channel, so clarity before speed."""
    magnitude = tl.abs(x)
    if x.dtype == tl.float64:
        e = tl.exp(-magnitude)
        w = 1.0 + e
        log1p = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    else:
        # exp(-|x|) with its argument reduced by multiples of ln 2 in two parts, then log(1 + e) = 2 atanh(e / (2 + e)).
        y = tl.where(magnitude > 87.0, -87.0, -magnitude)
        shifted = y * LOG2E + 12582912.0
        n = shifted - 12582912.0
        f = ((y - n * 0.693359375) + n * 2.12194440e-4) * LOG2E
        q = 1.5403513e-4 * f + 1.33907355e-3
        q = q * f + 9.6182375e-3
        q = q * f + 5.55035743e-2
        q = q * f + 2.40226498e-1
        q = q * f + 6.93147188e-1
        scale = ((n + 127.0).to(tl.int32) << 23).to(tl.float32, bitcast=True)
        e = scale * (1.0 + q * f)
        s = e / (2.0 + e)
        z = s * s
        p = 0.2817833487873625 * z + 0.279606027602223
        p = p * z + 0.4002491028172769
        p = p * z + 0.6666631468198986
        log1p = s * (p * z + 2.0)
    return tl.where(x > 0.0, x, 0.0) + tl.where(x == x, log1p, x)


@triton.jit
def decay_and_gap(t):
    """(2^t, 1 - 2^t) for t <= 0, which is log2|a|: the second exact to an ulp also where |a| is close to 1."""
    if t.dtype == tl.float64:
        x = t * LN2
        a = tl.exp(x)
        gap = 1.0 - a
        # Kahan's expm1: the error of exp drops out of the quotient. Far from 1 there is no cancellation, and a
        # denormal a, known to few digits, has no good logarithm.
        is_near = (gap > 0.0) & (a > 0.25)
        quotient = tl.where(is_near, gap / tl.log(tl.where(is_near, a, 0.5)) * x, gap)
        return a, tl.where(a == 1.0, -x, quotient)
    # Minimax on [-1/2, 0] to 1.3e-8. The polynomial serves both: many steps near |a| = 1 would add up the bias that
    # the hardware's 2^t may have.
    q = -0.001154452269800611 * t - 0.009541281079799575
    q = q * t - 0.05549040644460122
    q = q * t - 0.24022564279234418
    q = q * t - 0.6931471717366784
    near = q * t
    far = tl.exp2(t)
    is_near = t > -0.5
    return tl.where(is_near, 1.0 - near, far), tl.where(is_near, near, 1.0 - far)


@triton.jit
def root_and_inverse(s):
    """(sqrt(s), 1 / sqrt(s)) for s >= 0; (0, inf) at 0."""
    if s.dtype == tl.float64:
        root = tl.sqrt(s)
        return root, 1.0 / root
    inverse = tl.rsqrt(s)
    return s * tl.minimum(inverse, 2e19), inverse  # the bound lies above every 1 / sqrt(s) but that of 0


@triton.jit
def sin_cos(x):
    """(sin, cos). float32: absolute error below 2e-7 for |x| < 1e4; larger arguments lose accuracy gradually."""
    if x.dtype == tl.float64:
        return tl.sin(x), tl.cos(x)
    # Reduction by pi/2 in three parts, then minimax polynomials on [-pi/4, pi/4]. Adding 1.5 * 2^23 rounds to an
    # integer and leaves it in the low bits.
    shifted = x * 0.6366197723675814 + 12582912.0
    n = shifted - 12582912.0
    r = x - n * 1.5703125
    r = r - n * 4.837512969970703125e-4
    r = r - n * 7.549789948768648e-8
    z = r * r
    s = -1.9515295891e-4 * z + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * r + r
    c = 2.443315711809948e-5 * z - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    quadrant = shifted.to(tl.int32, bitcast=True)
    swap = (quadrant & 1) != 0
    sine = tl.where(swap, c, s)
    cosine = tl.where(swap, s, c)
    return (
        tl.where((quadrant & 2) != 0, -sine, sine),
        tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine),
    )


# Complex numbers as (real, imaginary) pairs


@triton.jit
def advance(a_re, a_im, h_re, h_im, u_re, u_im, COMPLEX: tl.constexpr):
    """a h + u. Real: only the real parts count, the imaginary ones are handed back."""
    if COMPLEX:
        return a_re * h_re - a_im * h_im + u_re, a_re * h_im + a_im * h_re + u_im
    return a_re * h_re + u_re, h_im


@triton.jit
def pull_back(a_re, a_im, g_re, g_im, COMPLEX: tl.constexpr):
    """conj(a) g. Real: only the real parts count, the imaginary one is handed back."""
    if COMPLEX:
        return a_re * g_re + a_im * g_im, a_re * g_im - a_im * g_re
    return a_re * g_re, g_im
