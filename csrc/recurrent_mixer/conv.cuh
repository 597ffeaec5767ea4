// What the mixer's kernels share: which frames an output of the causal convolution reads, and where they lie.
#pragma once

#include "../common/pack.cuh"
#include "../common/scan.cuh"
#include "params.h"

namespace trecvit {
namespace {

constexpr int kMaxTaps = 4;  // of kernels that keep a window of frames in registers

inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Parameters of neighbouring channels, from a multiple of 16 bytes on.
template <class S, int Lanes>
TRECVIT_DEVICE void load_parameters(const void* from, int64_t at, S (&to)[Lanes]) {
  constexpr int kLanes = kLanesPerPack<S>;
#pragma unroll
  for (int j = 0; j < Lanes; j += kLanes) {
    S part[kLanes];
    unpack<S>(gpu::load16(static_cast<const S*>(from) + at + j), part);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[j + i] = part[i];
  }
}

template <class IO>
TRECVIT_DEVICE IO* row_of(const View& v, int64_t batch, int64_t row) {
  return static_cast<IO*>(v.data) + batch * v.batch_stride + row * v.row_stride;
}

// The lanes of frames on both sides of frame 0: of u and of the tail, or of their gradients.
template <class IO>
struct Frames {
  IO *u, *tail;  // of frame 0 and of frame 1 - taps; no tail: null
  int64_t u_stride, tail_stride, tail_frames;

  TRECVIT_DEVICE Frames(const View& u_view, const View& tail_view, int64_t taps, int64_t batch, int64_t row,
                        int64_t lane)
      : u(row_of<IO>(u_view, batch, row) + lane),
        tail(tail_view.data ? row_of<IO>(tail_view, batch, row) + lane : nullptr),
        u_stride(u_view.frame_stride),
        tail_stride(tail_view.frame_stride),
        tail_frames(taps - 1) {}
  TRECVIT_DEVICE IO* at(int64_t t) const { return t >= 0 ? u + t * u_stride : tail + (tail_frames + t) * tail_stride; }
};

// How the work on tubes is shared: a group takes every groups-th of the segments of tubes, or with several warps in a
// group each of them as many. `columns` blocks of threads lie next to each other to cover the channels.
struct Shares {
  int64_t columns, groups, units, segment_frames;
};

// One segment of a tube.
struct Unit {
  int64_t batch, row, begin, end;

  TRECVIT_DEVICE Unit(const CausalConvForward& p, const Shares& shares, int64_t index) {
    const int64_t tubes = p.batch * p.rows, segment = index / tubes, tube = index - segment * tubes;
    batch = tube / p.rows;
    row = tube - batch * p.rows;
    begin = segment * shares.segment_frames;
    end = min_of(begin + shares.segment_frames, p.frames);
  }
};

TRECVIT_DEVICE bool resets_at(const CausalConvForward& p, int64_t batch, int64_t t) {
  return p.reset && p.reset[batch * p.frames + t] != 0;
}

// How many frames before t its output reads, if t itself does not reset: none from before the last reset.
TRECVIT_DEVICE int64_t reach_back(const CausalConvForward& p, int64_t batch, int64_t t) {
  const int64_t most = p.tail.data ? p.taps - 1 : min_of(p.taps - 1, t);
  for (int64_t shift = 1; p.reset && shift <= most && shift <= t; ++shift)
    if (resets_at(p, batch, t - shift)) return shift;
  return most;
}

// How many outputs after t (t may be a frame of the tail) read it.
TRECVIT_DEVICE int64_t reach_ahead(const CausalConvForward& p, int64_t batch, int64_t t) {
  const int64_t most = min_of(p.taps - 1, p.frames - 1 - t);
  for (int64_t shift = t < 0 ? -t : 1; p.reset && shift <= most; ++shift)
    if (resets_at(p, batch, t + shift)) return shift - 1;
  return most;
}

}  // namespace
}  // namespace trecvit
