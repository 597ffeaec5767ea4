// The causal convolution for any number of taps and any alignment: a thread per element, frames read as often as taps
// need them.
#pragma once

#include "conv.cuh"

namespace trecvit {
namespace {

constexpr int kAnyThreads = 256;

// The element of a thread; neighbours have neighbouring channels. Frames count from `first_frame`.
struct Element {
  int64_t batch, t, row, channel;
  bool exists;

  TRECVIT_DEVICE Element(const CausalConvForward& p, int64_t first_frame) {
    int64_t index = gpu::block_index() * kAnyThreads + gpu::thread_index();
    channel = index % p.channels;
    index /= p.channels;
    row = index % p.rows;
    index /= p.rows;
    const int64_t frames = p.frames - first_frame;
    t = index % frames + first_frame;
    batch = index / frames;
    exists = batch < p.batch;
  }
};

template <class IO>
TRECVIT_KERNEL(kAnyThreads) void any_conv_forward_kernel(CausalConvForward p) {
  using S = typename StateOf<IO>::type;
  const Element e(p, 0);
  if (!e.exists) return;
  const Frames<const IO> input(p.u, p.tail, p.taps, e.batch, e.row, e.channel);
  const S* weight = static_cast<const S*>(p.weight) + (p.taps - 1) * p.channels + e.channel;
  S sum = static_cast<const S*>(p.bias)[e.channel];
  for (int64_t shift = resets_at(p, e.batch, e.t) ? 0 : reach_back(p, e.batch, e.t); shift >= 0; --shift)
    sum += weight[-shift * p.channels] * load(*input.at(e.t - shift));
  store(row_of<IO>(p.y, e.batch, e.row)[e.t * p.y.frame_stride + e.channel], sum);
}

// du, and dtail if wanted.
template <class IO>
TRECVIT_KERNEL(kAnyThreads) void any_conv_du_kernel(CausalConvBackward p) {
  using S = typename StateOf<IO>::type;
  const Element e(p, p.dtail.data ? 1 - p.taps : 0);
  if (!e.exists) return;
  const IO* dy = row_of<const IO>(p.dy, e.batch, e.row) + e.channel;
  const S* weight = static_cast<const S*>(p.weight) + (p.taps - 1) * p.channels + e.channel;
  const int64_t reach = reach_ahead(p, e.batch, e.t);
  S sum = S(0);
  for (int64_t shift = e.t < 0 ? -e.t : 0; shift <= reach; ++shift)
    sum += weight[-shift * p.channels] * load(dy[(e.t + shift) * p.dy.frame_stride]);
  store(*Frames<IO>(p.du, p.dtail, p.taps, e.batch, e.row, e.channel).at(e.t), sum);
}

// (groups, taps + 1, channels): what the units of a group add to dweight and dbias. A thread owns a channel of a group,
// and takes kMaxTaps taps at a time.
template <class IO>
TRECVIT_KERNEL(kAnyThreads) void any_conv_sums_kernel(CausalConvBackward p, Shares shares, void* partial) {
  using S = typename StateOf<IO>::type;
  const int64_t index = gpu::block_index() * kAnyThreads + gpu::thread_index();
  const int64_t group = index / p.channels, channel = index - group * p.channels;
  if (group >= shares.groups) return;
  S* to = static_cast<S*>(partial) + group * (p.taps + 1) * p.channels + channel;
  for (int64_t first = 0; first < p.taps; first += kMaxTaps) {
    S sums[kMaxTaps] = {}, bias = S(0);
    for (int64_t i_unit = group; i_unit < shares.units; i_unit += shares.groups) {
      const Unit unit(p, shares, i_unit);
      const Frames<const IO> input(p.u, p.tail, p.taps, unit.batch, unit.row, channel);
      const IO* dy = row_of<const IO>(p.dy, unit.batch, unit.row) + channel;
      for (int64_t t = unit.begin; t < unit.end; ++t) {
        const int64_t reach = resets_at(p, unit.batch, t) ? 0 : reach_back(p, unit.batch, t);
        const S output = load(dy[t * p.dy.frame_stride]);
        bias += output;
#pragma unroll
        for (int i = 0; i < kMaxTaps; ++i) {
          if (first + i > reach) break;
          sums[i] += output * load(*input.at(t - first - i));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMaxTaps; ++i)
      if (first + i < p.taps) to[(p.taps - 1 - first - i) * p.channels] = sums[i];
    if (first == 0) to[p.taps * p.channels] = bias;
  }
}

}  // namespace
}  // namespace trecvit
