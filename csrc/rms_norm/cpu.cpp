// RMS norm over rows on the CPU: y = x n (scale + 1) with n = 1 / sqrt(mean(x^2) + eps).
// Backward, g = (scale + 1) dy: dx = n (g - x n^2 mean(g x)), dscale = sum over rows of dy x n.
#include "../common/blocks.h"
#include "../common/isa.h"
#include "params.h"

namespace trecvit {
namespace {

constexpr int64_t kPartials = 16;  // sums that are added side by side, so that their loop vectorises
constexpr int64_t kRowsPerSum = 64;

template <class S, class Term>
TRECVIT_INLINE S sum(int64_t count, Term term) {
  alignas(64) S partial[kPartials] = {};
  const int64_t whole = count / kPartials * kPartials;
  for (int64_t first = 0; first < whole; first += kPartials) {
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < kPartials; ++j) partial[j] += term(first + j);
  }
  for (int64_t j = whole; j < count; ++j) partial[j - whole] += term(j);
  S total = S(0);
  for (int64_t j = 0; j < kPartials; ++j) total += partial[j];
  return total;
}

template <class IO>
struct Norm {
  using S = typename StateOf<IO>::type;

  static S inverse(const RmsNormForward& p, const IO* x) {
    const S squares = sum<S>(p.channels, [&](int64_t j) { return load(x[j]) * load(x[j]); });
    return S(1) / square_root(squares / S(p.channels) + S(p.eps));
  }

  static void run(const RmsNormForward& p) {
    const S* scale = static_cast<const S*>(p.scale);
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t row = 0; row < p.rows; ++row) {
      const IO* x = static_cast<const IO*>(p.x) + row * p.channels;
      IO* y = static_cast<IO*>(p.y) + row * p.channels;
      const S n = inverse(p, x);
      TRECVIT_VECTORIZE
      for (int64_t j = 0; j < p.channels; ++j) store(y[j], load(x[j]) * n * (scale[j] + S(1)));
    }
  }

  static void run(const RmsNormBackward& p) {
    const S* scale = static_cast<const S*>(p.scale);
    const int64_t sums = (p.rows + kRowsPerSum - 1) / kRowsPerSum;
    Workspace workspace(sums * p.channels * int64_t(sizeof(S)));
    S* partial = static_cast<S*>(workspace.data);
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t at = 0; at < sums; ++at) {
      S* dscale = partial + at * p.channels;
      for (int64_t j = 0; j < p.channels; ++j) dscale[j] = S(0);
      const int64_t end = min_of((at + 1) * kRowsPerSum, p.rows);
      for (int64_t row = at * kRowsPerSum; row < end; ++row) {
        const IO *x = static_cast<const IO*>(p.x) + row * p.channels,
                 *dy = static_cast<const IO*>(p.dy) + row * p.channels;
        IO* dx = static_cast<IO*>(p.dx) + row * p.channels;
        const S n = inverse(p, x);
        const S along = sum<S>(p.channels, [&](int64_t j) { return load(x[j]) * load(dy[j]) * (scale[j] + S(1)); });
        const S pull = n * n * (along / S(p.channels));
        TRECVIT_VECTORIZE
        for (int64_t j = 0; j < p.channels; ++j) {
          const S x_j = load(x[j]), dy_j = load(dy[j]);
          dscale[j] += dy_j * x_j * n;
          store(dx[j], n * (dy_j * (scale[j] + S(1)) - x_j * pull));
        }
      }
    }
    reduce_rows<S>(partial, sums, p.channels, static_cast<S*>(p.dscale), nullptr, p.threads);
  }
};

template <class P>
void dispatch(const P& p) {
  switch (p.dtype) {
    case DType::kFloat32: return Norm<float>::run(p);
    case DType::kBFloat16: return Norm<BFloat16>::run(p);
    case DType::kFloat16: return Norm<Float16>::run(p);
    case DType::kFloat64: return Norm<double>::run(p);
    default: return;  // no complex norm
  }
}

}  // namespace

namespace TRECVIT_ISA {
extern const RmsNormKernels rms_norm_kernels;
const RmsNormKernels rms_norm_kernels = {dispatch<RmsNormForward>, dispatch<RmsNormBackward>};
}  // namespace TRECVIT_ISA
}  // namespace trecvit
