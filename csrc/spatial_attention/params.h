// What the spatial attention's launchers take: raw pointers, sizes and element strides. There is no CPU kernel: PyTorch's own is used.
#pragma once

#include "../common/view.h"

namespace trecvit {

// qkv is seen as (batch, frames, tokens, 3 heads head_dim), channels contiguous: q of head h at channel h D, k at (H + h) D, v at
// (2 H + h) D. out (B, T, N, H D) and lse (B, T, H, N) are dense.
struct SpatialAttentionForward {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, frames = 0, tokens = 0, heads = 0, head_dim = 0;
  double scale = 1;
  View qkv;
  void* out = nullptr;
  void* lse = nullptr;  // log2 of the sum of 2^(scale log2(e) q k), float; null: not wanted
};

struct SpatialAttentionBackward : SpatialAttentionForward {  // out and lse are inputs
  View dout;             // (B, T, N, H D), channels contiguous
  void* dqkv = nullptr;  // dense, like qkv
};

// csrc/spatial_attention/*.cu; csrc/common/launch.h says what they return. *_workspace: bytes of scratch that a call needs.
struct CudaLaunch;
extern "C" {
const char* trecvit_cuda_spatial_attention_forward(const SpatialAttentionForward*, const CudaLaunch*);
const char* trecvit_cuda_spatial_attention_backward(const SpatialAttentionBackward*, const CudaLaunch*);
int64_t trecvit_cuda_spatial_attention_forward_workspace(const SpatialAttentionForward*, const CudaLaunch*);
int64_t trecvit_cuda_spatial_attention_backward_workspace(const SpatialAttentionBackward*, const CudaLaunch*);
}

}  // namespace trecvit
