// Spatial attention on a GPU, forward: out = softmax(scale q k^T) v for every frame and head, and the base-2
// log-sum-exp of the scores.
//
// A warp has 16 queries and keeps their scores against all keys in registers, so the softmax is a plain one. Channels
// stream through shared memory in strips of 64 bytes: first those of q and k, adding to the scores, then those of v,
// each giving as many channels of the result. Shared memory thus does not grow with D, and any D up to the limit runs
// without a template.
#include <math.h>

#include "rows.cuh"

namespace trecvit {
namespace {

constexpr int kStages = 3;      // strips in shared memory
constexpr int kGroupTiles = 4;  // tiles of keys that are loaded ahead
constexpr int kStripPacks = kStripBytes / 16;
constexpr int kStripPitch = kStripBytes + kRowGap;

struct ForwardCall {
  SpatialAttentionForward p;
  float scale_log2;  // |scale| log2(e)
  uint32_t flip;     // sign bits to flip in q's words where the scale is negative, for the sake of the maximum
  bool packed_qkv, packed_out;
  int parts;
};

// Warps of a block and blocks of a multiprocessor, by what scores leave of the registers. At least two blocks, so that
// one computes while the other waits; but each reads all keys and values anew.
template <class IO, int kTiles>
struct Residency {
  static constexpr int kWarps = kTiles == 26 && !kIsFloat<IO> ? 5 : 4;
  static constexpr int kBlocks = kTiles <= 8 ? 4 : (kTiles <= 16 ? 3 : 2);
};

// The greatest number of the quad's four lanes, which share a row; NaN only if all are.
TRECVIT_DEVICE float quad_max(float x) {
  x = ::fmaxf(x, gpu::shuffle_xor(x, 1));
  return ::fmaxf(x, gpu::shuffle_xor(x, 2));
}
TRECVIT_DEVICE float quad_sum(float x) {
  x += gpu::shuffle_xor(x, 1);
  return x + gpu::shuffle_xor(x, 2);
}

// kTiles: tiles of 8 keys that the registers hold. kFullTiles: so many are full for all N that this instance serves.
template <class IO, int kTiles, int kFullTiles>
TRECVIT_KERNEL(gpu::kWarp * Residency<IO, kTiles>::kWarps, Residency<IO, kTiles>::kBlocks)
void attention_forward_kernel(ForwardCall call) {
  constexpr int kKeys = kTiles * 8;
  TRECVIT_DYNAMIC_SHARED(shared);
  const SpatialAttentionForward& p = call.p;
  const int tokens = int(p.tokens), head_dim = int(p.head_dim);
  const int warps = gpu::block_threads() / gpu::kWarp, warp = gpu::thread_index() / gpu::kWarp;
  const int lane = gpu::thread_index() % gpu::kWarp;
  const Work at = work_of(p, call.parts);
  const int first_row = at.first_row + warp * kTileRows;
  const bool busy = first_row < tokens;  // the last warps of a frame may have nothing to do but copying

  const int strips = ceil_div(head_dim, kStripChannels<IO>);
  const int stage_bytes = (kKeys + warps * kTileRows) * kStripPitch;
  const auto stage_of = [&](int i) { return shared + i % kStages * stage_bytes; };
  // Strip i of all keys and the block's queries, or strip i - strips of all values. All threads take part. There is a
  // group of copies for every i, so that counting groups counts strips.
  const IO* const q_ptr = head_of<IO>(p.qkv, at, head_dim);
  const auto fetch = [&](int i) {
    if (i < 2 * strips) {
      const int thread = gpu::opaque(gpu::thread_index()), pack = thread % kStripPacks;
      const int rows = i < strips ? kKeys + warps * kTileRows : kKeys;
      const int channel = (i < strips ? i : i - strips) * kStripChannels<IO> + pack * kLanesPerPack<IO>;
      const int64_t keys = (i < strips ? 1 : 2) * p.heads * head_dim;
      char* to = stage_of(i) + pack * 16;
#pragma unroll 1  // copies wait for nothing, and registers are short
      for (int row = thread / kStripPacks; row < rows; row += gpu::block_threads() / kStripPacks) {
        const bool is_key = row < kKeys;
        const int token = is_key ? row : at.first_row + row - kKeys;
        const int count = token < tokens ? head_dim - channel : 0;
        const IO* from = q_ptr + (is_key ? keys : 0) + token * p.qkv.row_stride + channel;
        load_pack(to + row * kStripPitch, count > 0 ? from : q_ptr, count, call.packed_qkv);
      }
    }
    gpu::commit_copies();
  };
  // Strip i is there for all, and the stage of strip i - 1 is free for the one that comes next.
  const auto advance = [&](int i) {
    gpu::wait_copies<kStages - 2>();
    gpu::sync_block();
    fetch(i + kStages - 1);
    return stage_of(i);
  };
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  float scores[kTiles][4] = {};
  for (int i = 0; i < strips; ++i) {
    const char* stage = advance(i);
    if (!busy) continue;
    Operand<IO, 4> left[kStripSteps<IO>];
    set_left(left, load_left(stage + (kKeys + warp * kTileRows) * kStripPitch, kStripPitch, lane, call.flip));
    // By groups, for the branch between them: it skips keys that do not exist, and keeps the compiler from loading all
    // keys first.
#pragma unroll
    for (int first = 0; first < kTiles; first += kGroupTiles) {
      if (first * 8 >= tokens) break;
#pragma unroll
      for (int n = first; n < first + kGroupTiles && n < kTiles; ++n) {
        Operand<IO, 2> right[kStripSteps<IO>];
        load_right_transposed(right, stage + n * 8 * kStripPitch, kStripPitch, lane);
        multiply_add(scores[n], left, right);
      }
    }
  }

  // Rows g and g + 8 of the warp's tile: even and odd halves of a tile's four numbers.
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n >= kFullTiles && n * 8 + lane % 4 * 2 + i % 2 >= tokens) scores[n][i] = -INFINITY;
      top[i / 2] = ::fmaxf(top[i / 2], scores[n][i]);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) top[half] = quad_max(top[half]) * call.scale_log2;
  LeftTiles<IO> weights[kTiles / 2];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = gpu::fast_exp2(scores[n][i] * call.scale_log2 - top[i / 2]);
      sum[i / 2] += scores[n][i];
    }
    if (n % 2) weights[n / 2] = round_tiles<IO>(scores[n - 1], scores[n]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) sum[half] = quad_sum(sum[half]);

  if (p.lse && busy && lane % 4 < 2) {
    const int row = first_row + lane / 4 + lane % 4 * 8;
    if (row < tokens)
      row_numbers_of(p.lse, p, at)[row] = (lane % 4 ? top[1] : top[0]) + ::log2f(lane % 4 ? sum[1] : sum[0]);
  }

  const int64_t out_stride = p.heads * p.head_dim;
  IO* out = dense_head_of<IO>(p.out, p, at, p.heads) + first_row * out_stride;
  for (int i = 0; i < strips; ++i) {
    const char* stage = advance(strips + i);
    if (!busy) continue;
    float results[kStripTiles<IO>][4] = {};
#pragma unroll
    for (int j = 0; j < kTiles / 2; ++j) {
      Operand<IO, 4> left[1];
      set_left(left, weights[j]);
#pragma unroll
      for (int n = 0; n < kStripTiles<IO>; n += 2) {
        Operand<IO, 2> right[2][1];
        load_right<IO>(right, stage + j * 16 * kStripPitch + n * 8 * int(sizeof(IO)), kStripPitch, lane);
        multiply_add(results[n], left, right[0]);
        multiply_add(results[n + 1], left, right[1]);
      }
    }
    const int channel = i * kStripChannels<IO>;
    store_strip(out + channel, out_stride, results, 1.0f / sum[0], 1.0f / sum[1], tokens - first_row,
                head_dim - channel, call.packed_out, lane);
  }
}

template <class IO, int kTiles, int kFullTiles>
void launch_tiles(DeviceScope& scope, ForwardCall call, const CudaLaunch& launch) {
  const SpatialAttentionForward& p = call.p;
  const int64_t sequences = p.batch * p.frames * p.heads;
  const Split split = split_tiles(sequences, p.tokens, Residency<IO, kTiles>::kWarps, launch.multiprocessors);
  call.parts = split.parts;
  const int64_t shared_bytes = int64_t(kStages) * (kTiles * 8 + split.warps * kTileRows) * kStripPitch;
  scope.launch("spatial_attention_forward", attention_forward_kernel<IO, kTiles, kFullTiles>, sequences * split.parts,
               split.warps * gpu::kWarp, shared_bytes, call);
}

template <class IO>
void launch_forward(DeviceScope& scope, const SpatialAttentionForward& p, const CudaLaunch& launch) {
  ForwardCall call;
  call.p = p;
  call.scale_log2 = positive_scale_log2(p.scale);
  call.flip = sign_flip<IO>(p.scale);
  call.packed_qkv = packs_fit<IO>(p.qkv, p);
  call.packed_out = packs_fit<IO>(p.out, p.head_dim);
  if (p.tokens <= 64) {
    launch_tiles<IO, 8, 0>(scope, call, launch);
  } else if (p.tokens <= 128) {
    launch_tiles<IO, 16, 8>(scope, call, launch);
  } else if (p.tokens <= 208) {  // 196 patches, with or without a class token
    launch_tiles<IO, 26, 16>(scope, call, launch);
  } else {
    launch_tiles<IO, 32, 26>(scope, call, launch);
  }
}

}  // namespace

extern "C" const char* trecvit_cuda_spatial_attention_forward(const SpatialAttentionForward* p,
                                                              const CudaLaunch* launch) {
  return dispatch(*p, *launch, [&](auto io, DeviceScope& scope) { launch_forward<decltype(io)>(scope, *p, *launch); });
}

extern "C" int64_t trecvit_cuda_spatial_attention_forward_workspace(const SpatialAttentionForward*, const CudaLaunch*) {
  return 0;
}

}  // namespace trecvit
