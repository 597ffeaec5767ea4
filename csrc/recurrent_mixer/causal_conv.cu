// Causal depthwise convolution over time, forward and backward.
//
// y_t = bias + sum over shifts of weight[taps - 1 - shift] u_{t - shift}, without frames from before a reset. A thread
// owns 16 bytes of neighbouring channels of a tube and walks a segment of time, the last taps - 1 frames in registers;
// the lanes of a warp are neighbours, so that a frame of a warp is 512 contiguous bytes. The backward pass walks back
// with a window of dy, which serves both du_t = sum of weight dy_{t + shift} and dweight += u_t dy_{t + shift}: sums of
// a thread over frames and tubes, then over the warps of a block, then by a second kernel over blocks, all in a fixed
// order. More than kMaxTaps taps, and channels that do not come in 16 bytes, have kernels of their own (any_conv.cuh).
#include "../common/launch.h"
#include "any_conv.cuh"
#include "conv.cuh"

namespace trecvit {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * gpu::kWarp;
constexpr int kAhead = 4, kAheadBackward = 2;  // frames loaded at once, and as many loaded early

// weight[shift] belongs to the frame `shift` frames ago.
template <class S, int Lanes>
TRECVIT_DEVICE void load_weights(const CausalConvForward& p, int64_t first, S (&weight)[kMaxTaps][Lanes]) {
#pragma unroll
  for (int shift = 0; shift < kMaxTaps; ++shift)
    if (shift < p.taps) load_parameters<S>(p.weight, (p.taps - 1 - shift) * p.channels + first, weight[shift]);
}

template <class IO>
TRECVIT_KERNEL(kThreads) void conv_forward_kernel(CausalConvForward p, Shares shares) {
  using S = typename StateOf<IO>::type;
  constexpr int Lanes = kLanesPerPack<IO>;
  const int64_t column = gpu::block_index() % shares.columns, group = gpu::block_index() / shares.columns;
  const int64_t first = (column * gpu::kWarp + gpu::thread_index() % gpu::kWarp) * Lanes;
  if (first >= p.channels) return;
  S weight[kMaxTaps][Lanes], bias[Lanes];
  load_weights<S>(p, first, weight);
  load_parameters<S>(p.bias, first, bias);

  const int64_t taken = group * kWarps + gpu::thread_index() / gpu::kWarp;
  for (int64_t index = taken; index < shares.units; index += shares.groups * kWarps) {
    const Unit unit(p, shares, index);
    const Frames<const IO> input(p.u, p.tail, p.taps, unit.batch, unit.row, first);
    IO* y = row_of<IO>(p.y, unit.batch, unit.row) + unit.begin * p.y.frame_stride + first;
    const int frames = int(unit.end - unit.begin);
    int reach = int(reach_back(p, unit.batch, unit.begin));
    gpu::Pack16 before[kMaxTaps - 1] = {}, ahead[kAhead], now[kAhead];  // before[i]: frame t - 1 - i
#pragma unroll
    for (int i = 0; i < kMaxTaps - 1; ++i)
      if (i < reach) before[i] = gpu::load16(input.at(unit.begin - 1 - i));
    const IO* next = input.at(unit.begin);
    const auto load_ahead = [&](int start) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (start + i < frames) ahead[i] = gpu::load16(next);
        next += input.u_stride;
      }
    };
    load_ahead(0);
    for (int start = 0; start < frames; start += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) now[i] = ahead[i];
      load_ahead(start + kAhead);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (start + i >= frames) break;
        if (resets_at(p, unit.batch, unit.begin + start + i)) reach = 0;
        S sum[Lanes], value[Lanes];
#pragma unroll
        for (int j = 0; j < Lanes; ++j) sum[j] = bias[j];
#pragma unroll
        for (int shift = kMaxTaps - 1; shift >= 0; --shift) {
          if (shift > reach) continue;
          unpack<IO>(shift ? before[shift ? shift - 1 : 0] : now[i], value);
#pragma unroll
          for (int j = 0; j < Lanes; ++j) sum[j] += weight[shift][j] * value[j];
        }
        gpu::store16(y, pack_lanes<IO>(sum));
        y += p.y.frame_stride;
#pragma unroll
        for (int shift = kMaxTaps - 2; shift > 0; --shift) before[shift] = before[shift - 1];
        before[0] = now[i];
        reach = reach + 1 < p.taps ? reach + 1 : reach;
      }
    }
  }
}

// A thread's sums: dweight[shift], then dbias.
template <class S, int Lanes>
struct Sums {
  S of[kMaxTaps + 1][Lanes];
};

// What frame t gives: its du, and its share of the sums. after[i] is dy_{t + 1 + i}; the outputs from t + from to
// t + to read it.
template <class IO, class S, int Lanes>
TRECVIT_DEVICE gpu::Pack16 visit(const S (&weight)[kMaxTaps][Lanes], gpu::Pack16 u, gpu::Pack16 dy,
                                 const gpu::Pack16 (&after)[kMaxTaps - 1], int from, int to,
                                 Sums<S, Lanes>& sums) {
  S input[Lanes], output[Lanes], du[Lanes] = {};
  unpack<IO>(u, input);
#pragma unroll
  for (int shift = 0; shift < kMaxTaps; ++shift) {
    if (shift < from || shift > to) continue;
    unpack<IO>(shift ? after[shift ? shift - 1 : 0] : dy, output);
#pragma unroll
    for (int j = 0; j < Lanes; ++j) {
      du[j] += weight[shift][j] * output[j];
      sums.of[shift][j] += input[j] * output[j];
      if (shift == 0) sums.of[kMaxTaps][j] += output[j];
    }
  }
  return pack_lanes<IO>(du);
}

template <class IO>
TRECVIT_KERNEL(kThreads, 3) void conv_backward_kernel(CausalConvBackward p, Shares shares, void* partial) {
  using S = typename StateOf<IO>::type;
  using gpu::Pack16;
  constexpr int Lanes = kLanesPerPack<IO>;
  TRECVIT_SHARED(S, block_sums, (kMaxTaps + 1) * Lanes * gpu::kWarp);
  const int64_t column = gpu::block_index() % shares.columns, group = gpu::block_index() / shares.columns;
  const int lane = gpu::thread_index() % gpu::kWarp, warp = gpu::thread_index() / gpu::kWarp;
  const int64_t first = (column * gpu::kWarp + lane) * Lanes;
  const bool exists = first < p.channels;
  S weight[kMaxTaps][Lanes] = {};
  Sums<S, Lanes> sums = {};
  if (exists) load_weights<S>(p, first, weight);

  const int64_t taken = group * kWarps + warp;
  for (int64_t index = taken; exists && index < shares.units; index += shares.groups * kWarps) {
    const Unit unit(p, shares, index);
    const Frames<const IO> input(p.u, p.tail, p.taps, unit.batch, unit.row, first);
    const Frames<IO> gradient(p.du, p.dtail, p.taps, unit.batch, unit.row, first);
    const IO* dy = row_of<const IO>(p.dy, unit.batch, unit.row) + first;
    const int frames = int(unit.end - unit.begin);
    int reach = int(reach_ahead(p, unit.batch, unit.end - 1));
    Pack16 after[kMaxTaps - 1] = {}, u_ahead[kAheadBackward], dy_ahead[kAheadBackward];
    Pack16 u_now[kAheadBackward], dy_now[kAheadBackward];
#pragma unroll
    for (int i = 0; i < kMaxTaps - 1; ++i)
      if (i < reach) after[i] = gpu::load16(dy + (unit.end + i) * p.dy.frame_stride);
    const IO *u_next = input.at(unit.end - 1), *dy_next = dy + (unit.end - 1) * p.dy.frame_stride;
    IO* du = gradient.at(unit.end - 1);
    const uint8_t* reset = p.reset ? p.reset + unit.batch * p.frames + unit.end - 1 : nullptr;
    const auto load_ahead = [&](int start) {  // frames count from the end here
#pragma unroll
      for (int i = 0; i < kAheadBackward; ++i) {
        if (start + i < frames) u_ahead[i] = gpu::load16(u_next), dy_ahead[i] = gpu::load16(dy_next);
        u_next -= input.u_stride;
        dy_next -= p.dy.frame_stride;
      }
    };
    const auto slide = [&](Pack16 newest) {
#pragma unroll
      for (int i = kMaxTaps - 2; i > 0; --i) after[i] = after[i - 1];
      after[0] = newest;
    };
    load_ahead(0);
    for (int start = 0; start < frames; start += kAheadBackward) {
#pragma unroll
      for (int i = 0; i < kAheadBackward; ++i) u_now[i] = u_ahead[i], dy_now[i] = dy_ahead[i];
      load_ahead(start + kAheadBackward);
#pragma unroll
      for (int i = 0; i < kAheadBackward; ++i) {
        if (start + i >= frames) break;
        gpu::store16(du, visit<IO>(weight, u_now[i], dy_now[i], after, 0, reach, sums));
        du -= gradient.u_stride;
        slide(dy_now[i]);
        reach = reach + 1 < p.taps ? reach + 1 : reach;
        if (reset && *reset--) reach = 0;
      }
    }
    if (unit.begin > 0 || !(input.tail || gradient.tail)) continue;
    for (int t = -1; t > -p.taps; --t) {  // where frame 0 resets, reach stays below -t: nothing reads the tail
      const Pack16 u = input.tail ? gpu::load16(input.at(t)) : Pack16{};
      const Pack16 du_tail = visit<IO>(weight, u, Pack16{}, after, -t, reach, sums);
      if (gradient.tail) gpu::store16(gradient.at(t), du_tail);
      slide(Pack16{});
      reach = reach + 1 < p.taps ? reach + 1 : reach;
    }
  }

  // The warps add their sums one after another; the last one stores them.
  S* to = static_cast<S*>(partial) + group * (p.taps + 1) * p.channels + first;
  for (int turn = 0; turn < kWarps; ++turn) {
    if (turn == warp && exists) {
#pragma unroll
      for (int k = 0; k <= kMaxTaps; ++k) {
        if (k >= p.taps && k < kMaxTaps) continue;
#pragma unroll
        for (int j = 0; j < Lanes; ++j) {
          S* const slot = block_sums + (k * Lanes + j) * gpu::kWarp + lane;
          S sum = sums.of[k][j];
          if (turn > 0) sum = gpu::load_shared(slot) + sum;
          if (turn < kWarps - 1) gpu::store_shared(slot, sum);
          if (turn == kWarps - 1) to[(k == kMaxTaps ? p.taps : p.taps - 1 - k) * p.channels + j] = sum;
        }
      }
    }
    gpu::sync_block();
  }
}

constexpr int kSumRows = 8, kSumThreads = kSumRows * gpu::kWarp;

// (groups, taps + 1, channels) -> dweight and dbias. In double: there may be many thousand groups.
template <class S>
TRECVIT_KERNEL(kSumThreads) void sum_groups_kernel(CausalConvBackward p, const S* partial, int64_t groups) {
  TRECVIT_SHARED(double, sums, kSumThreads);
  const int lane = gpu::thread_index() % gpu::kWarp, part = gpu::thread_index() / gpu::kWarp;
  const int64_t columns = (p.taps + 1) * p.channels, weights = p.taps * p.channels;
  const int64_t column = gpu::block_index() * gpu::kWarp + lane;
  double sum = 0;
#pragma unroll 4
  for (int64_t group = part; column < columns && group < groups; group += kSumRows)
    sum += double(partial[group * columns + column]);
  gpu::store_shared(sums + gpu::thread_index(), sum);
  gpu::sync_block();
  if (part > 0 || column >= columns) return;
  for (int other = 1; other < kSumRows; ++other) sum += gpu::load_shared(sums + other * gpu::kWarp + lane);
  if (column < weights) {
    static_cast<S*>(p.dweight)[column] = S(sum);
  } else {
    static_cast<S*>(p.dbias)[column - weights] = S(sum);
  }
}

constexpr int64_t kWarpsPerMultiprocessor = 12;  // as registers allow in the backward pass
constexpr int64_t kMinFrames = 16;  // of a segment: its neighbours read its last taps - 1 frames again
constexpr int64_t kMaxFrames = 128;  // that one sum in float runs over

// `columns` warps next to each other cover the channels of a tube, `warps` of them form a group.
Shares shares_of(const CausalConvForward& p, const CudaLaunch& launch, int64_t columns, int64_t warps) {
  const int64_t wanted = launch.multiprocessors * kWarpsPerMultiprocessor, tubes = p.batch * p.rows;
  int64_t segments = min_of(wanted / (tubes * columns), p.frames / kMinFrames);
  segments = max_of(max_of(segments, 1), ceil_div(p.frames, kMaxFrames));
  Shares shares;
  shares.columns = columns;
  shares.segment_frames = ceil_div(p.frames, segments);
  shares.units = tubes * ceil_div(p.frames, shares.segment_frames);
  const int64_t most = max_of(1, kMaxFrames / shares.segment_frames);
  const int64_t units_of_warp = min_of(max_of(shares.units * columns / wanted, 1), most);
  shares.groups = ceil_div(shares.units, units_of_warp * warps);
  return shares;
}

bool is_empty(const CausalConvForward& p) { return p.batch == 0 || p.frames == 0 || p.rows == 0 || p.channels == 0; }

template <class IO>
struct Conv {
  using S = typename StateOf<IO>::type;

  static bool fits(const CausalConvForward& p, const View& v, int64_t frames) {
    return in_units(v, p.batch, frames, p.rows, sizeof(IO), 16);
  }
  // Whether every 16 bytes hold the same channels everywhere.
  static bool in_packs(const CausalConvForward& p) {
    return p.taps <= kMaxTaps && p.channels % kLanesPerPack<IO> == 0 && in_units(p.weight, 16) &&
           in_units(p.bias, 16) && fits(p, p.u, p.frames) && fits(p, p.y, p.frames) && fits(p, p.tail, p.taps - 1);
  }
  static bool in_packs(const CausalConvBackward& p) {
    return in_packs(static_cast<const CausalConvForward&>(p)) && fits(p, p.dy, p.frames) && fits(p, p.du, p.frames) &&
           fits(p, p.dtail, p.taps - 1);
  }
  static Shares shares(const CausalConvForward& p, const CudaLaunch& launch, bool packs) {
    return packs ? shares_of(p, launch, ceil_div(p.channels, kLanesPerPack<IO> * gpu::kWarp), kWarps)
                 : shares_of(p, launch, ceil_div(p.channels, gpu::kWarp), 1);
  }

  static const char* run(const CausalConvForward& p, const CudaLaunch& launch) {
    DeviceScope scope(launch);
    if (in_packs(p)) {
      const Shares w = shares(p, launch, true);
      scope.launch("conv_forward_kernel", conv_forward_kernel<IO>, w.columns * w.groups, kThreads, 0, p, w);
    } else {
      const int64_t blocks = ceil_div(p.batch * p.frames * p.rows * p.channels, kAnyThreads);
      scope.launch("any_conv_forward_kernel", any_conv_forward_kernel<IO>, blocks, kAnyThreads, 0, p);
    }
    return scope.error();
  }

  static const char* run(const CausalConvBackward& p, const CudaLaunch& launch) {
    DeviceScope scope(launch);
    const bool packs = in_packs(p);
    const Shares w = shares(p, launch, packs);
    if (packs) {
      scope.launch("conv_backward_kernel", conv_backward_kernel<IO>, w.columns * w.groups, kThreads, 0, p, w,
                   launch.workspace);
    } else {
      const int64_t frames = p.frames + (p.dtail.data ? p.taps - 1 : 0);
      const int64_t blocks = ceil_div(p.batch * frames * p.rows * p.channels, kAnyThreads);
      scope.launch("any_conv_du_kernel", any_conv_du_kernel<IO>, blocks, kAnyThreads, 0, p);
      scope.launch("any_conv_sums_kernel", any_conv_sums_kernel<IO>, ceil_div(w.groups * p.channels, kAnyThreads),
                   kAnyThreads, 0, p, w, launch.workspace);
    }
    const int64_t columns = (p.taps + 1) * p.channels;
    scope.launch("sum_groups_kernel", sum_groups_kernel<S>, ceil_div(columns, gpu::kWarp), kSumThreads, 0, p,
                 static_cast<const S*>(launch.workspace), w.groups);
    return scope.error();
  }

  static int64_t workspace(const CausalConvBackward& p, const CudaLaunch& launch) {
    return shares(p, launch, in_packs(p)).groups * (p.taps + 1) * p.channels * int64_t(sizeof(S));
  }
};

// Calls `call` with the Conv of p's dtype; there is no complex convolution: merged halves are real channels.
template <class R, class Call>
R dispatch(const CausalConvForward& p, R otherwise, Call call) {
  if (is_empty(p)) return otherwise;
  switch (p.dtype) {
    case DType::kFloat32: return call(Conv<float>{});
    case DType::kBFloat16: return call(Conv<BFloat16>{});
    case DType::kFloat16: return call(Conv<Float16>{});
    case DType::kFloat64: return call(Conv<double>{});
    default: return otherwise;
  }
}

}  // namespace

extern "C" {

const char* trecvit_cuda_causal_conv_forward(const CausalConvForward* p, const CudaLaunch* launch) {
  return dispatch<const char*>(*p, nullptr, [&](auto conv) { return conv.run(*p, *launch); });
}

int64_t trecvit_cuda_causal_conv_forward_workspace(const CausalConvForward*, const CudaLaunch*) { return 0; }

const char* trecvit_cuda_causal_conv_backward(const CausalConvBackward* p, const CudaLaunch* launch) {
  return dispatch<const char*>(*p, nullptr, [&](auto conv) { return conv.run(*p, *launch); });
}

int64_t trecvit_cuda_causal_conv_backward_workspace(const CausalConvBackward* p, const CudaLaunch* launch) {
  return dispatch<int64_t>(*p, 0, [&](auto conv) { return conv.workspace(*p, *launch); });
}

}  // extern "C"
}  // namespace trecvit
