// How the attention kernels share out the work, and how rows go from global to shared memory and results to global
// memory.
#pragma once

#include "../common/launch.h"
#include "../common/pack.cuh"
#include "fragments.cuh"
#include "params.h"

namespace trecvit {
namespace {

constexpr int kTileRows = 16;  // queries (or keys) of a warp
constexpr int kMaxTokens = 256, kMaxHeadDim = 128;
// Between rows in shared memory, past their bytes: so that eight rows lie in different banks.
constexpr int kRowGap = 16;

template <class T>
TRECVIT_INLINE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Tiles of a frame and head go to `parts` blocks of `warps` warps. Blocks that are as even as can be; more and smaller
// ones where there are too few frames and heads for the GPU.
struct Split {
  int parts, warps;
};
inline Split split_tiles(int64_t sequences, int64_t tokens, int most_warps, int multiprocessors) {
  const int64_t tiles = ceil_div<int64_t>(tokens, kTileRows);
  int64_t parts = ceil_div<int64_t>(tiles, most_warps);
  if (parts < multiprocessors / sequences) parts = multiprocessors / sequences;
  if (parts > tiles) parts = tiles;
  const int64_t warps = ceil_div(tiles, parts);
  return {int(ceil_div(tiles, warps)), int(warps)};
}

// What a block works on: its frame and head, and the first of its rows.
struct Work {
  uint32_t batch, frame, head;
  uint32_t frames_before;  // over all batches
  int first_row;
};
TRECVIT_DEVICE Work work_of(const SpatialAttentionForward& p, int parts) {
  const uint32_t block = uint32_t(gpu::block_index());  // a grid has fewer than 2^31
  const uint32_t sequence = block / uint32_t(parts), frames_before = sequence / uint32_t(p.heads);
  Work at;
  at.frames_before = frames_before;
  at.head = sequence % uint32_t(p.heads);
  at.batch = frames_before / uint32_t(p.frames);
  at.frame = frames_before % uint32_t(p.frames);
  at.first_row = int(block % uint32_t(parts)) * (gpu::block_threads() / gpu::kWarp) * kTileRows;
  return at;
}

// Where a block's frame and head begin in a view (q's head, in qkv).
template <class IO>
TRECVIT_DEVICE const IO* head_of(const View& v, const Work& at, int64_t head_dim) {
  return static_cast<const IO*>(v.data) + at.batch * v.batch_stride + at.frame * v.frame_stride + at.head * head_dim;
}
// The same in a dense array whose tokens have `heads` heads in all.
template <class IO>
TRECVIT_DEVICE IO* dense_head_of(void* data, const SpatialAttentionForward& p, const Work& at, int64_t heads) {
  return static_cast<IO*>(data) + (at.frames_before * p.tokens * heads + at.head) * p.head_dim;
}
// In a dense array (B, T, H, N) of one number per row.
TRECVIT_DEVICE float* row_numbers_of(void* data, const SpatialAttentionForward& p, const Work& at) {
  return static_cast<float*>(data) + (at.frames_before * p.heads + at.head) * p.tokens;
}

// |scale| log2(e) as a normal number, so that masked scores stay -inf; its sign goes to one factor of the scores, by
// flipping the sign bits of an operand's words.
inline float positive_scale_log2(double scale) {
  const double magnitude = (scale < 0 ? -scale : scale) * kLog2E, least = 1.17549435e-38;
  return float(magnitude > least ? magnitude : least);
}
template <class IO>
uint32_t sign_flip(double scale) {
  return scale < 0 ? (kIsFloat<IO> ? 0x80000000u : 0x80008000u) : 0u;
}

// What the launchers do not do: null if they do it.
inline const char* refusal(const SpatialAttentionForward& p) {
  if (p.dtype != DType::kFloat32 && p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat16)
    return "spatial_attention: only float32, bfloat16 and float16 have CUDA kernels";
  if (p.tokens > kMaxTokens || p.head_dim > kMaxHeadDim)
    return "spatial_attention: the CUDA kernels hold at most 256 tokens and 128 channels per head";
  return nullptr;
}
inline bool is_empty(const SpatialAttentionForward& p) {
  return p.batch * p.frames * p.tokens * p.heads * p.head_dim == 0;
}

// Calls run(IO{}, scope), which launches, for the dtype of the parameters. Null, or what was wrong.
template <class Run>
const char* dispatch(const SpatialAttentionForward& p, const CudaLaunch& launch, Run run) {
  if (is_empty(p)) return nullptr;
  if (const char* reason = refusal(p)) return reason;
  DeviceScope scope(launch);
  switch (p.dtype) {
    case DType::kBFloat16:
      run(BFloat16{}, scope);
      break;
    case DType::kFloat16:
      run(Float16{}, scope);
      break;
    default:
      run(float{}, scope);
  }
  return scope.error();
}

// Host side: whether the rows of all heads start at multiples of 16 bytes, in a view or in a dense array.
template <class IO>
bool packs_fit(const void* data, int64_t head_dim) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && head_dim % kLanesPerPack<IO> == 0;
}
template <class IO>
bool packs_fit(const View& v, const SpatialAttentionForward& p) {
  const auto fits = [](int64_t size, int64_t stride) { return size <= 1 || stride % kLanesPerPack<IO> == 0; };
  return packs_fit<IO>(v.data, p.head_dim) && fits(p.batch, v.batch_stride) && fits(p.frames, v.frame_stride) &&
         fits(p.tokens, v.row_stride);
}

// One pack of which only `count` elements are there, for rows at any address.
template <class IO>
TRECVIT_DEVICE gpu::Pack16 gather(const IO* from, int count) {
  gpu::Pack16 pack = {};
#pragma unroll
  for (int j = 0; j < kLanesPerPack<IO>; ++j) {
    if (j >= count) continue;
    if constexpr (kIsFloat<IO>) {
      pack.words[j] = float_to_bits(from[j]);
    } else {
      pack.words[j / 2] |= uint32_t(from[j].bits) << (j % 2 * 16);
    }
  }
  return pack;
}

// Brings one pack to shared memory, zeros where fewer than one of its elements exist. packed: asynchronously, in the
// group that the caller commits; else at once.
template <class IO>
TRECVIT_DEVICE void load_pack(char* to, const IO* from, int count, bool packed) {
  if (packed) {
    gpu::copy_async16(to, from, count > 0);
  } else {
    gpu::store_shared(reinterpret_cast<gpu::Pack16*>(to), gather(from, count));
  }
}

// Words of four lanes: word i of lane q goes to place q of lane i. lane: in the quad.
TRECVIT_DEVICE void transpose_quad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t got = gpu::shuffle_xor(upper ? words[i] : words[i + bit], bit);
      words[i] = upper ? got : words[i];
      words[i + bit] = upper ? words[i + bit] : got;
    }
  }
}

// Writes a strip of results, 16 rows, times a factor for the rows g and one for the rows g + 8. `to` is the first row's
// first channel; rows and channels: so many exist.
template <class IO>
TRECVIT_DEVICE void store_strip(IO* to, int64_t stride, const float (*tiles)[4], float factor_low, float factor_high,
                                int rows, int channels, bool packed, int lane) {
  constexpr int kTiles = kStripTiles<IO>;
  const int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    const float factor = half ? factor_high : factor_low;
    IO* out = to + row * stride;
    if (packed) {
      // Four lanes hold a row's 64 bytes: after the exchange each has 16 neighbouring ones.
      gpu::Pack16 pack;
      int channel;
      if constexpr (kIsFloat<IO>) {
        const bool odd = q % 2;
        const float own[2][2] = {{tiles[0][2 * half] * factor, tiles[0][2 * half + 1] * factor},
                                 {tiles[1][2 * half] * factor, tiles[1][2 * half + 1] * factor}};
        const float low = gpu::shuffle_xor(odd ? own[0][0] : own[1][0], 1);
        const float high = gpu::shuffle_xor(odd ? own[0][1] : own[1][1], 1);
        const float first[2] = {odd ? low : own[0][0], odd ? high : own[0][1]};
        const float second[2] = {odd ? own[1][0] : low, odd ? own[1][1] : high};
        pack = {{float_to_bits(first[0]), float_to_bits(first[1]), float_to_bits(second[0]), float_to_bits(second[1])}};
        channel = (odd ? 8 : 0) + q / 2 * 4;
      } else {
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          pack.words[i] = gpu::round_pair<IO>(tiles[i][2 * half] * factor, tiles[i][2 * half + 1] * factor);
        transpose_quad(pack.words, q);
        channel = 8 * q;
      }
      if (row < rows && channel < channels) gpu::store16(out + channel, pack);
    } else if (row < rows) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int channel = i / 2 * 8 + 2 * q + i % 2;
        if (channel < channels) store(out[channel], tiles[i / 2][2 * half + i % 2] * factor);
      }
    }
  }
}

}  // namespace
}  // namespace trecvit
