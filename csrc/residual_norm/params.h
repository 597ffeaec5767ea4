// What the launcher of residual_norm takes. CUDA only: on the CPU the additions are cheap.
#pragma once

#include "../common/view.h"

namespace trecvit {

// sum = x + branch, y = norm(sum), all dense (rows, channels) of `dtype`. Parameters are of `parameter_dtype`.
struct ResidualNorm {
  DType dtype = DType::kFloat32, parameter_dtype = DType::kFloat32;
  int64_t rows = 0, channels = 0;
  bool centred = false;  // layer norm: (s - mean) / sqrt(var + eps) weight + bias; else RMS norm: s / sqrt(mean s^2 + eps) (1 + weight)
  double eps = 0;
  const void* x = nullptr;
  const void* branch = nullptr;
  const void* weight = nullptr;  // (channels)
  const void* bias = nullptr;    // (channels); centred only
  void* sum = nullptr;
  void* y = nullptr;
};

// csrc/residual_norm/kernels.cu; csrc/common/launch.h says what it returns.
struct CudaLaunch;
extern "C" {
const char* trecvit_cuda_residual_norm(const ResidualNorm*, const CudaLaunch*);  // no workspace
}

}  // namespace trecvit
