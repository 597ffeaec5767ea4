// What the GELU's launchers take: dense arrays of `count` elements.
#pragma once

#include <stdint.h>

#include "../common/dtype.h"

namespace trecvit {

struct GeluForward {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  int threads = 1;
  const void* x = nullptr;
  void* y = nullptr;  // may be x
};

struct GeluBackward {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  int threads = 1;
  const void* x = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;  // may be dy
};

struct GeluKernels {
  void (*forward)(const GeluForward&);
  void (*backward)(const GeluBackward&);
};

}  // namespace trecvit
