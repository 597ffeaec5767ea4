// What the RMS norm's launchers take: dense (rows, channels) arrays.
#pragma once

#include <stdint.h>

#include "../common/dtype.h"

namespace trecvit {

struct RmsNormForward {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, channels = 0;
  double eps = 0;
  int threads = 1;
  const void* x = nullptr;
  const void* scale = nullptr;  // (channels), state type; the factor is scale + 1
  void* y = nullptr;
};

struct RmsNormBackward : RmsNormForward {
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dscale = nullptr;  // (channels), state type
};

struct RmsNormKernels {
  void (*forward)(const RmsNormForward&);
  void (*backward)(const RmsNormBackward&);
};

}  // namespace trecvit
