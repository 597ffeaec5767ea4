// What the linear scan's launchers take. Views and strides as in common/view.h; a reverse scan is a view whose frame
// stride is negative and whose data is the last frame.
#pragma once

#include "../common/view.h"

namespace trecvit {

struct LinearScanForward {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, frames = 0, rows = 0, lanes = 0;
  View a, b;
  View h;                   // output
  const void* h0 = nullptr;  // dense (batch, rows, lanes) of the state type; null: zeros
  void* h_last = nullptr;
  void* states = nullptr;  // (batch, saved, rows, lanes): the state before chunks 1, 2, ...; null: not wanted
  int64_t frames_per_state = 16, segments = 1;
  int threads = 1;
};

struct LinearScanBackward : LinearScanForward {
  View dh, da, db;
  const void* dh_last = nullptr;
  void* dh0 = nullptr;
};

struct LinearScanKernels {
  void (*forward)(const LinearScanForward&);
  void (*backward)(const LinearScanBackward&);
};

// csrc/linear_scan/*.cu; csrc/common/launch.h says what they return. *_workspace: bytes of scratch that a call needs.
struct CudaLaunch;
extern "C" {
const char* trecvit_cuda_linear_scan_forward(const LinearScanForward*, const CudaLaunch*);
const char* trecvit_cuda_linear_scan_backward(const LinearScanBackward*, const CudaLaunch*);
int64_t trecvit_cuda_linear_scan_forward_workspace(const LinearScanForward*, const CudaLaunch*);
int64_t trecvit_cuda_linear_scan_backward_workspace(const LinearScanBackward*, const CudaLaunch*);
}

}  // namespace trecvit
