// Spatial attention on a GPU, backward: the gradients of q, k and v for every frame and head, in two kernels of one
// form. A warp owns 16 rows and meets the rows of the frame in pieces that pass through shared memory:
//
//   gradient of q:         own q, dout; meets k, v;     s = q k^T, dp = dout v^T, p = 2^(s - lse), ds = p (dp - delta),
//                                                       dq = scale ds k
//   gradients of k and v:  own k, v;    meets q, dout;  the same transposed; dk = scale ds^T q, dv = p^T dout
//
// delta = rowsum(dout out) is found by the first kernel and left in the workspace for the second, (B, T, H, N) floats.
// Every gradient is summed by one warp, in the order of the rows: nothing depends on the order in which blocks run.
#include <math.h>

#include "rows.cuh"

namespace trecvit {
namespace {

struct BackwardCall {
  SpatialAttentionBackward p;
  float scale, scale_log2;  // scale_log2: |scale| log2(e)
  uint32_t flip;            // sign bits to flip in the words of the first factor of s where the scale is negative
  bool packed_qkv, packed_dout, packed_out, packed_dqkv;
  int parts;
  float* delta;
};

// What depends on the dtype and on D, rounded up to 32, 64 or 128. Shared memory stays below the 99 kB of every GPU.
template <class IO, int kHeadDim>
struct Shape {
  static constexpr int kRowBytes = kHeadDim * int(sizeof(IO)), kStrips = kRowBytes / kStripBytes;
  static constexpr int kPitch = kRowBytes + kRowGap, kPacks = kRowBytes / 16;
  static constexpr int kPiece = kRowBytes > 256 ? 16 : 32;  // rows met at once
  // Own rows as operands in registers, or read from shared memory for every piece.
  static constexpr bool kHold = kRowBytes <= 128 && !kIsFloat<IO>;
};
// Warps of a block; two blocks at least on a multiprocessor, so that one computes while the other waits.
template <class IO, int kHeadDim, bool kOfKeys>
constexpr int kWarps =
    Shape<IO, kHeadDim>::kRowBytes > 256 ? 3 : (Shape<IO, kHeadDim>::kHold && kHeadDim <= (kOfKeys ? 32 : 64) ? 6 : 4);
constexpr int kBlocks = 2;
constexpr int kPieces = 2;  // in shared memory: one in use, one coming

struct alignas(16) QueryPair {  // numbers of two neighbouring queries
  float lse[2], delta[2];
};

// delta of the warp's 16 rows, of which `rows` exist. Two lanes share a row and take its packs in turn. The
// result: those of rows g and g + 8.
template <class IO, int kPacks>
TRECVIT_DEVICE void row_products(float (&delta)[2], const char* dout, int pitch, const IO* out, int64_t out_stride,
                                 int rows, int head_dim, bool packed, float* to, int lane) {
  const int row = lane / 2;
  float sum = 0;
  for (int pack = lane % 2; pack < kPacks; pack += 2) {
    const int count = row < rows ? head_dim - pack * kLanesPerPack<IO> : 0;
    if (count <= 0) continue;
    const IO* from = out + row * out_stride + pack * kLanesPerPack<IO>;
    float x[kLanesPerPack<IO>], y[kLanesPerPack<IO>];
    unpack<IO>(packed ? gpu::load16(from) : gather(from, count), x);
    unpack<IO>(gpu::load_shared(reinterpret_cast<const gpu::Pack16*>(dout + row * pitch + pack * 16)), y);
#pragma unroll
    for (int j = 0; j < kLanesPerPack<IO>; ++j) sum += x[j] * y[j];
  }
  sum += gpu::shuffle_xor(sum, 1);
  if (lane % 2 == 0 && row < rows) to[row] = sum;
#pragma unroll
  for (int half = 0; half < 2; ++half) delta[half] = gpu::shuffle(sum, (lane / 4 + 8 * half) * 2);
}

// Adds to sums the product of 16 x 16 weights, as two tiles of results, and 16 rows in shared memory. The branch skips
// channels that do not exist, and keeps the compiler from loading all first.
template <class IO, int kHeadDim>
TRECVIT_DEVICE void add_product(float (&sums)[kHeadDim / 8][4], const float (&first)[4], const float (&second)[4],
                                const char* rows, int head_dim, int lane) {
  Operand<IO, 4> left[1];
  set_left(left, round_tiles<IO>(first, second));
#pragma unroll
  for (int n = 0; n < kHeadDim / 8; n += 2) {
    if (kHeadDim > 32 && n % 4 == 0 && n * 8 >= head_dim) break;
    Operand<IO, 2> right[2][1];
    load_right<IO>(right, rows + n * 8 * int(sizeof(IO)), Shape<IO, kHeadDim>::kPitch, lane);
    multiply_add(sums[n], left, right[0]);
    multiply_add(sums[n + 1], left, right[1]);
  }
}

// kOfKeys: the gradients of k and v. Rows of kind 0, owned and met, are the factors of s; those of kind 1 of dp.
template <class IO, int kHeadDim, bool kOfKeys>
TRECVIT_KERNEL(gpu::kWarp * kWarps<IO, kHeadDim, kOfKeys>, kBlocks)
void attention_backward_kernel(BackwardCall call) {
  using F = Shape<IO, kHeadDim>;
  constexpr int kTiles = F::kPiece / 8, kPitch = F::kPitch;
  TRECVIT_DYNAMIC_SHARED(shared);
  const SpatialAttentionBackward& p = call.p;
  const int tokens = int(p.tokens), head_dim = int(p.head_dim);
  const int warps = gpu::block_threads() / gpu::kWarp, warp = gpu::thread_index() / gpu::kWarp;
  const int lane = gpu::thread_index() % gpu::kWarp;
  const Work at = work_of(p, call.parts);
  const int first_row = at.first_row + warp * kTileRows, own_rows = warps * kTileRows;
  const bool busy = first_row < tokens;  // the last warps of a frame may have nothing to do but copying

  // Own rows of both kinds, pieces of both kinds, and for the keys all queries' lse and delta.
  const auto own = [&](int kind) { return shared + kind * own_rows * kPitch; };
  const auto piece = [&](int i, int kind) {
    return shared + (2 * own_rows + (i % kPieces * 2 + kind) * F::kPiece) * kPitch;
  };
  QueryPair* pairs = reinterpret_cast<QueryPair*>(shared + (2 * own_rows + kPieces * 2 * F::kPiece) * kPitch);

  // Part 0, 1, 2 of qkv or, 3, dout: `rows` rows from row `first` on. All threads take part.
  const IO* const q_ptr = head_of<IO>(p.qkv, at, head_dim);
  const IO* const dout_ptr = head_of<IO>(p.dout, at, head_dim);
  const auto load_rows = [&](char* to, int part, int first, int rows) {
    const bool is_dout = part == 3;
    const int thread = gpu::opaque(gpu::thread_index()), pack = thread % F::kPacks, channel = pack * kLanesPerPack<IO>;
    const IO* const from = is_dout ? dout_ptr : q_ptr + part * p.heads * head_dim;
    const int64_t stride = is_dout ? p.dout.row_stride : p.qkv.row_stride;
#pragma unroll 1  // copies wait for nothing, and registers are short
    for (int row = thread / F::kPacks; row < rows; row += gpu::block_threads() / F::kPacks) {
      const int count = first + row < tokens ? head_dim - channel : 0;
      load_pack(to + row * kPitch + pack * 16, count > 0 ? from + (first + row) * stride + channel : from, count,
                is_dout ? call.packed_dout : call.packed_qkv);
    }
  };
  const auto fetch = [&](int i) {
    if (i * F::kPiece < tokens) {
      load_rows(piece(i, 0), kOfKeys ? 0 : 1, i * F::kPiece, F::kPiece);
      load_rows(piece(i, 1), kOfKeys ? 3 : 2, i * F::kPiece, F::kPiece);
    }
    gpu::commit_copies();
  };

  load_rows(own(0), kOfKeys ? 1 : 0, at.first_row, own_rows);
  load_rows(own(1), kOfKeys ? 2 : 3, at.first_row, own_rows);
  fetch(0);
  const float* lse_ptr = row_numbers_of(p.lse, p, at);
  float* delta_ptr = row_numbers_of(call.delta, p, at);
  if constexpr (kOfKeys) {
    for (int row = gpu::thread_index() * 2; row < ceil_div(tokens, F::kPiece) * F::kPiece;
         row += gpu::block_threads() * 2) {
      QueryPair pair = {};
      for (int j = 0; j < 2 && row + j < tokens; ++j) {
        pair.lse[j] = lse_ptr[row + j];
        pair.delta[j] = delta_ptr[row + j];
      }
      gpu::store_shared(pairs + row / 2, pair);
    }
  }

  LeftStrip held[2][F::kHold ? F::kStrips : 1] = {};
  const char* const own_rows_ptr = shared + warp * kTileRows * kPitch;
  const auto load_strip = [&](int kind, int c) {
    return load_left(own_rows_ptr + kind * own_rows * kPitch + c * kStripBytes, kPitch, lane,
                     kind == 0 ? call.flip : 0);
  };
  const auto own_strip = [&](int kind, int c) {
    if constexpr (F::kHold) {
      return held[kind][c];
    } else {
      return load_strip(kind, c);
    }
  };
  float lse[2] = {}, delta[2] = {};  // of rows g and g + 8, if they are queries
  float sums[kHeadDim / 8][4] = {};  // dq or dk, but for the scale
  float sums_v[kOfKeys ? kHeadDim / 8 : 1][4] = {};

  gpu::wait_copies<0>();
  gpu::sync_block();
  if (busy) {
    if constexpr (F::kHold) {
#pragma unroll
      for (int c = 0; c < F::kStrips; ++c) {
        held[0][c] = load_strip(0, c);
        held[1][c] = load_strip(1, c);
      }
    }
    if constexpr (!kOfKeys) {
      const int64_t out_stride = p.heads * p.head_dim;
      const IO* out = dense_head_of<IO>(p.out, p, at, p.heads) + first_row * out_stride;
      row_products<IO, F::kPacks>(delta, own_rows_ptr + own_rows * kPitch, kPitch, out, out_stride, tokens - first_row,
                                  head_dim, call.packed_out, delta_ptr + first_row, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + lane / 4 + 8 * half;
        if (row < tokens) lse[half] = lse_ptr[row];
      }
    }
  }

  for (int i = 0; i * F::kPiece < tokens; ++i) {
    if (i > 0) {
      gpu::wait_copies<0>();
      gpu::sync_block();  // piece i is there for all, and piece i - 1 is no longer read
    }
    fetch(i + 1);
    if (!busy) continue;

    const int strips = F::kHold ? F::kStrips : ceil_div(head_dim, kStripChannels<IO>);
    float s[kTiles][4] = {}, dp[kTiles][4] = {};
#pragma unroll(F::kHold ? F::kStrips : 1)
    for (int c = 0; c < strips; ++c) {
      Operand<IO, 4> left[kStripSteps<IO>];
      Operand<IO, 2> right[kStripSteps<IO>];
      set_left(left, own_strip(0, c));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        load_right_transposed(right, piece(i, 0) + n * 8 * kPitch + c * kStripBytes, kPitch, lane);
        multiply_add(s[n], left, right);
      }
      set_left(left, own_strip(1, c));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        load_right_transposed(right, piece(i, 1) + n * 8 * kPitch + c * kStripBytes, kPitch, lane);
        multiply_add(dp[n], left, right);
      }
    }

    // Rows of zeros past the last one do not give zeros: a lse far below zero makes their p infinite.
    const bool masked = (i + 1) * F::kPiece > tokens;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int column = i * F::kPiece + n * 8 + lane % 4 * 2;
      QueryPair pair;
      if constexpr (kOfKeys) pair = gpu::load_shared(pairs + column / 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool exists = !masked || column + j % 2 < tokens;
        const float row_lse = kOfKeys ? pair.lse[j % 2] : lse[j / 2];
        const float row_delta = kOfKeys ? pair.delta[j % 2] : delta[j / 2];
        s[n][j] = exists ? gpu::fast_exp2(s[n][j] * call.scale_log2 - row_lse) : 0.0f;
        dp[n][j] = exists ? s[n][j] * (dp[n][j] - row_delta) : 0.0f;
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      add_product<IO, kHeadDim>(sums, dp[n], dp[n + 1], piece(i, 0) + n * 8 * kPitch, head_dim, lane);
      if constexpr (kOfKeys)
        add_product<IO, kHeadDim>(sums_v, s[n], s[n + 1], piece(i, 1) + n * 8 * kPitch, head_dim, lane);
    }
  }

  if (!busy) return;
  const int64_t stride = 3 * p.heads * p.head_dim, part = p.heads * p.head_dim;
  // Found anew: kept all the time, it would take registers.
  IO* dq = dense_head_of<IO>(p.dqkv, p, work_of(p, gpu::opaque(call.parts)), 3 * p.heads) + first_row * stride;
#pragma unroll
  for (int c = 0; c < F::kStrips; ++c) {
    const int channel = c * kStripChannels<IO>, tile = c * kStripTiles<IO>;
    store_strip(dq + (kOfKeys ? part : 0) + channel, stride, sums + tile, call.scale, call.scale, tokens - first_row,
                head_dim - channel, call.packed_dqkv, lane);
    if constexpr (kOfKeys)
      store_strip(dq + 2 * part + channel, stride, sums_v + tile, 1.0f, 1.0f, tokens - first_row, head_dim - channel,
                  call.packed_dqkv, lane);
  }
}

template <class IO, int kHeadDim, bool kOfKeys>
void launch_shape(DeviceScope& scope, BackwardCall call, const CudaLaunch& launch) {
  using F = Shape<IO, kHeadDim>;
  const SpatialAttentionBackward& p = call.p;
  const int64_t sequences = p.batch * p.frames * p.heads;
  const Split split = split_tiles(sequences, p.tokens, kWarps<IO, kHeadDim, kOfKeys>, launch.multiprocessors);
  call.parts = split.parts;
  const int64_t rows_bytes = int64_t(2 * split.warps * kTileRows + kPieces * 2 * F::kPiece) * F::kPitch;
  const int64_t pairs_bytes = ceil_div<int64_t>(p.tokens, F::kPiece) * F::kPiece / 2 * int64_t(sizeof(QueryPair));
  scope.launch(kOfKeys ? "spatial_attention_backward of k and v" : "spatial_attention_backward of q",
               attention_backward_kernel<IO, kHeadDim, kOfKeys>, sequences * split.parts, split.warps * gpu::kWarp,
               rows_bytes + (kOfKeys ? pairs_bytes : 0), call);
}

template <class IO, int kHeadDim>
void launch_both(DeviceScope& scope, const BackwardCall& call, const CudaLaunch& launch) {
  launch_shape<IO, kHeadDim, false>(scope, call, launch);
  launch_shape<IO, kHeadDim, true>(scope, call, launch);
}

template <class IO>
void launch_backward(DeviceScope& scope, const SpatialAttentionBackward& p, const CudaLaunch& launch) {
  BackwardCall call;
  call.p = p;
  call.scale = float(p.scale);
  call.scale_log2 = positive_scale_log2(p.scale);
  call.flip = sign_flip<IO>(p.scale);
  call.packed_qkv = packs_fit<IO>(p.qkv, p);
  call.packed_dout = packs_fit<IO>(p.dout, p);
  call.packed_out = packs_fit<IO>(p.out, p.head_dim);
  call.packed_dqkv = packs_fit<IO>(p.dqkv, p.head_dim);
  call.delta = static_cast<float*>(launch.workspace);
  if (p.head_dim <= 32) {
    launch_both<IO, 32>(scope, call, launch);
  } else if (p.head_dim <= 64) {
    launch_both<IO, 64>(scope, call, launch);
  } else {
    launch_both<IO, 128>(scope, call, launch);
  }
}

}  // namespace

extern "C" const char* trecvit_cuda_spatial_attention_backward(const SpatialAttentionBackward* p,
                                                               const CudaLaunch* launch) {
  return dispatch(*p, *launch, [&](auto io, DeviceScope& scope) { launch_backward<decltype(io)>(scope, *p, *launch); });
}

extern "C" int64_t trecvit_cuda_spatial_attention_backward_workspace(const SpatialAttentionBackward* p,
                                                                     const CudaLaunch*) {
  return p->batch * p->frames * p->heads * p->tokens * int64_t(sizeof(float));
}

}  // namespace trecvit
