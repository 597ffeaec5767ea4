// gelu_tanh over dense arrays on the CPU, one exponential and one division an element.
#include "../common/dtype.h"
#include "../common/isa.h"
#include "params.h"

namespace trecvit {
namespace {

constexpr int64_t kBlock = 4096;  // elements that a thread takes at a time

template <class IO>
void run(const GeluForward& p) {
  const IO* x = static_cast<const IO*>(p.x);
  IO* y = static_cast<IO*>(p.y);
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t first = 0; first < p.count; first += kBlock) {
    const int64_t end = first + kBlock < p.count ? first + kBlock : p.count;
    TRECVIT_VECTORIZE
    for (int64_t j = first; j < end; ++j) store(y[j], gelu_tanh(load(x[j])).value);
  }
}

template <class IO>
void run(const GeluBackward& p) {
  const IO *x = static_cast<const IO*>(p.x), *dy = static_cast<const IO*>(p.dy);
  IO* dx = static_cast<IO*>(p.dx);
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t first = 0; first < p.count; first += kBlock) {
    const int64_t end = first + kBlock < p.count ? first + kBlock : p.count;
    TRECVIT_VECTORIZE
    for (int64_t j = first; j < end; ++j) store(dx[j], load(dy[j]) * gelu_tanh(load(x[j])).slope);
  }
}

template <class P>
void dispatch(const P& p) {
  switch (p.dtype) {
    case DType::kFloat32: return run<float>(p);
    case DType::kBFloat16: return run<BFloat16>(p);
    case DType::kFloat16: return run<Float16>(p);
    case DType::kFloat64: return run<double>(p);
    default: return;  // no complex GELU
  }
}

}  // namespace

namespace TRECVIT_ISA {
extern const GeluKernels gelu_kernels;
const GeluKernels gelu_kernels = {dispatch<GeluForward>, dispatch<GeluBackward>};
}  // namespace TRECVIT_ISA
}  // namespace trecvit
