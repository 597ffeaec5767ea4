// What the gated LRU's launchers take: raw pointers, sizes and element strides.
#pragma once

#include "../common/view.h"

namespace trecvit {

// `channels` gates per row: in the real case as many lanes of x, in the complex case twice as many (real half, then
// imaginary half). States are dense (batch, rows, lanes) arrays of the state type.
struct GatedLruForward {
  DType dtype = DType::kFloat32;
  bool complex = false, convex = false;
  int64_t batch = 0, frames = 0, rows = 0, channels = 0;
  View x, gate_x, gate_a;
  View y;                         // output; the mixer's z if v is given
  const void* a_param = nullptr;  // (channels), state type
  const void* a_imag = nullptr;   // (channels), state type; complex only
  const void* h0 = nullptr;       // null: zeros
  void* h_last = nullptr;
  void* states = nullptr;  // (batch, saved, rows, lanes): the state before chunks 1, 2, ...; null: not wanted
  const uint8_t* reset = nullptr;  // (batch, frames), dense; null: none
  bool starts = false;             // frame 0 resets
  // The recurrent mixer's additions: y * gelu_tanh(v), biases of the gates. Null in the plain op.
  View v;
  const void* gate_x_bias = nullptr;  // (channels), state type
  const void* gate_a_bias = nullptr;
  // Schedule.
  int64_t frames_per_state = 16, segments = 1;
  int threads = 1;
};

struct GatedLruBackward : GatedLruForward {
  View dy, dx, dgate_x, dgate_a, dv;  // dy is dz if v is given; dgate_* may be gate_* itself (written in place)
  const void* dh_last = nullptr;
  void* dh0 = nullptr;
  void* da_param = nullptr;  // (channels), state type
  void* da_imag = nullptr;
  void* dgate_x_bias = nullptr;
  void* dgate_a_bias = nullptr;
};

struct GatedLruKernels {
  void (*forward)(const GatedLruForward&);
  void (*backward)(const GatedLruBackward&);
};

// csrc/gated_lru/*.cu; csrc/common/launch.h says what they return. *_workspace: bytes of scratch that a call needs.
struct CudaLaunch;
extern "C" {
const char* trecvit_cuda_gated_lru_forward(const GatedLruForward*, const CudaLaunch*);
const char* trecvit_cuda_gated_lru_backward(const GatedLruBackward*, const CudaLaunch*);
int64_t trecvit_cuda_gated_lru_forward_workspace(const GatedLruForward*, const CudaLaunch*);
int64_t trecvit_cuda_gated_lru_backward_workspace(const GatedLruBackward*, const CudaLaunch*);
}

}  // namespace trecvit
