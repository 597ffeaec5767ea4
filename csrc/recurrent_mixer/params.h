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

}  // namespace trecvit
