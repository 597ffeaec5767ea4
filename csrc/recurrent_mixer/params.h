// What the recurrent mixer's own launchers take: the causal convolution over time. Its gates' matrix products are
// PyTorch's, its recurrence and output gate are gated_lru's with `v` set.
#pragma once

#include "../common/view.h"

namespace trecvit {

struct CausalConvForward {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, frames = 0, rows = 0, channels = 0, taps = 0;
  View u, tail;                      // tail: the taps - 1 frames before u; without data: zeros
  View y;                            // output
  const void* weight = nullptr;      // (taps, channels), state type; last tap = current frame
  const void* bias = nullptr;        // (channels), state type
  const uint8_t* reset = nullptr;    // (batch, frames), dense: no tap reads across a reset; null: none
  int threads = 1;
};

struct CausalConvBackward : CausalConvForward {
  View dy, du;
  View dtail;                        // not wanted without data
  void* dweight = nullptr;           // (taps, channels), state type
  void* dbias = nullptr;             // (channels), state type
};

struct RecurrentMixerKernels {
  void (*conv_forward)(const CausalConvForward&);
  void (*conv_backward)(const CausalConvBackward&);
};

// One frame (T = 1) of the whole mixer in one launch: convolution, gates, recurrence, output gate. CUDA only.
struct MixerStep {
  DType dtype = DType::kFloat32;
  bool complex = false;
  int64_t batch = 0, rows = 0, channels = 0, taps = 0, heads = 0;  // channels: of u
  View u, v, tail;                   // tail: the taps - 1 frames before u; without data: zeros
  View z;                            // output
  View new_tail;                     // output: the tail after this frame, not over `tail`; not wanted without data
  bool narrow = false;                // parameters are of `dtype`; else the gates' weights alone, the others of the state type
  const void* conv_weight = nullptr;  // (taps, channels)
  const void* conv_bias = nullptr;
  const void* gate_x_weight = nullptr;  // (heads, channels / heads, gates / heads), dtype; gates = channels or half of it (complex)
  const void* gate_x_bias = nullptr;    // (gates)
  const void* gate_a_weight = nullptr;
  const void* gate_a_bias = nullptr;
  const void* a_param = nullptr;  // (gates)
  const void* a_imag = nullptr;   // (gates); complex only
  const void* h0 = nullptr;       // dense (batch, rows, channels), state type; null: zeros
  void* h_last = nullptr;
  const uint8_t* reset = nullptr;  // (batch); null: none
  bool starts = false;             // resets all
};

// csrc/recurrent_mixer/*.cu; csrc/common/launch.h says what they return. *_workspace: bytes of scratch that a call needs.
struct CudaLaunch;
extern "C" {
const char* trecvit_cuda_causal_conv_forward(const CausalConvForward*, const CudaLaunch*);
const char* trecvit_cuda_causal_conv_backward(const CausalConvBackward*, const CudaLaunch*);
int64_t trecvit_cuda_causal_conv_forward_workspace(const CausalConvForward*, const CudaLaunch*);
int64_t trecvit_cuda_causal_conv_backward_workspace(const CausalConvBackward*, const CudaLaunch*);
const char* trecvit_cuda_mixer_step(const MixerStep*, const CudaLaunch*);  // no workspace
}

}  // namespace trecvit
