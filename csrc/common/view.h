// How a kernel sees a tensor.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace trecvit {

// A (batch, frames, rows, lanes) view with contiguous lanes; strides in elements, any sign, zero for expanded views.
struct View {
  void* data = nullptr;
  int64_t batch_stride = 0, frame_stride = 0, row_stride = 0;
};

}  // namespace trecvit
