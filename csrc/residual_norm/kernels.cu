// Residual addition and the norm behind it on a GPU: a block per row, which it reads once and keeps on chip.
//
// The sum is rounded to the tensors' dtype before the norm, as if they were two operations. The mean of squares is taken
// around the mean (layer norm) in a second pass over the row in shared memory.
#include "../common/device.h"
#include "../common/launch.h"
#include "params.h"

namespace trecvit {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / gpu::kWarp;

template <class S>
TRECVIT_DEVICE S sum_of_block(S value, S* partial) {
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) value += gpu::shuffle_xor(value, mask);
  const int warp = gpu::thread_index() / gpu::kWarp;
  gpu::sync_block();  // `partial` may still be read by the sum before
  if (gpu::thread_index() % gpu::kWarp == 0) gpu::store_shared(partial + warp, value);
  gpu::sync_block();
  S sum = S(0);
  for (int w = 0; w < kWarps; ++w) sum += gpu::load_shared(partial + w);
  return sum;
}

// Element i of a parameter vector of any dtype.
template <class S>
TRECVIT_DEVICE S parameter_at(const void* from, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16: return S(load(static_cast<const BFloat16*>(from)[i]));
    case DType::kFloat16: return S(load(static_cast<const Float16*>(from)[i]));
    case DType::kFloat64: return S(static_cast<const double*>(from)[i]);
    default: return S(static_cast<const float*>(from)[i]);
  }
}

template <class IO>
TRECVIT_KERNEL(kThreads) void residual_norm_kernel(ResidualNorm p) {
  using S = typename StateOf<IO>::type;
  TRECVIT_DYNAMIC_SHARED(memory);  // the row
  TRECVIT_SHARED(S, partial, kWarps);
  S* row = reinterpret_cast<S*>(memory);
  const int64_t at = gpu::block_index() * p.channels;
  const IO* x = static_cast<const IO*>(p.x) + at;
  const IO* branch = static_cast<const IO*>(p.branch) + at;
  IO* sum = static_cast<IO*>(p.sum) + at;
  IO* y = static_cast<IO*>(p.y) + at;

  // A thread meets its own elements of the row again, so that none of these loops needs a barrier.
  S total = S(0);
  for (int64_t c = gpu::thread_index(); c < p.channels; c += kThreads) {
    IO rounded;
    store(rounded, S(load(x[c])) + S(load(branch[c])));
    sum[c] = rounded;
    const S s = load(rounded);
    gpu::store_shared(row + c, s);
    total += p.centred ? s : s * s;
  }
  total = sum_of_block(total, partial) / S(p.channels);
  const S mean = p.centred ? total : S(0);
  S variance = total;
  if (p.centred) {
    S squares = S(0);
    for (int64_t c = gpu::thread_index(); c < p.channels; c += kThreads) {
      const S d = gpu::load_shared(row + c) - mean;
      squares += d * d;
    }
    variance = sum_of_block(squares, partial) / S(p.channels);
  }
  const S scale = S(1) / square_root(variance + S(p.eps));
  for (int64_t c = gpu::thread_index(); c < p.channels; c += kThreads) {
    const S normed = (gpu::load_shared(row + c) - mean) * scale;
    const S weight = parameter_at<S>(p.weight, p.parameter_dtype, c);
    const S value = p.centred ? normed * weight + parameter_at<S>(p.bias, p.parameter_dtype, c)
                              : normed * (weight + S(1));
    store(y[c], value);
  }
}

template <class IO>
const char* run(const ResidualNorm& p, const CudaLaunch& launch) {
  DeviceScope scope(launch);
  const int64_t shared = p.channels * int64_t(sizeof(typename StateOf<IO>::type));
  scope.launch("residual_norm", residual_norm_kernel<IO>, p.rows, kThreads, shared, p);
  return scope.error();
}

}  // namespace

extern "C" const char* trecvit_cuda_residual_norm(const ResidualNorm* p, const CudaLaunch* launch) {
  if (p->rows == 0 || p->channels == 0) return nullptr;
  switch (p->dtype) {
    case DType::kFloat32: return run<float>(*p, *launch);
    case DType::kBFloat16: return run<BFloat16>(*p, *launch);
    case DType::kFloat16: return run<Float16>(*p, *launch);
    case DType::kFloat64: return run<double>(*p, *launch);
    default: return "residual_norm: unknown dtype";
  }
}

}  // namespace trecvit
