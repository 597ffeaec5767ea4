// Causal depthwise convolution over time on the CPU, in the tokens' own layout: a thread walks a block of channels
// through time, the rows of the last frames still in its cache.
#include "../common/blocks.h"
#include "../common/isa.h"
#include "params.h"

namespace trecvit {
namespace {

constexpr int64_t kPanel = 16;  // blocks side by side: their last frames stay in the second cache

template <class IO_>
struct Conv {
  using IO = IO_;
  using S = typename StateOf<IO>::type;

  static IO* row(const View& v, const Block& block, int64_t t) {
    return static_cast<IO*>(v.data) + block.batch * v.batch_stride + t * v.frame_stride + block.row * v.row_stride +
           block.first;
  }
  // The input row of frame t; negative frames are the tail's, null where there is none.
  static IO* input(const View& u, const View& tail, const CausalConvForward& p, const Block& block, int64_t t) {
    if (t >= 0) return row(u, block, t);
    return tail.data ? row(tail, block, p.taps - 1 + t) : nullptr;
  }
  static const S* channels(const void* from, const Block& block) { return static_cast<const S*>(from) + block.first; }

  // How many frames before t its output reads: up to taps - 1, none from before the last reset.
  static int64_t reach(const CausalConvForward& p, const Block& block, int64_t t) {
    if (!p.reset) return p.taps - 1;
    for (int64_t shift = 0; shift < p.taps - 1 && shift <= t; ++shift)
      if (p.reset[block.batch * p.frames + t - shift]) return shift;
    return p.taps - 1;
  }

  static void forward(const CausalConvForward& p, const Blocks& blocks) {
    walk_panels(blocks, kPanel, p.threads, [&](int64_t first, int64_t count) {
      for (int64_t t = 0; t < p.frames; ++t)
        for (int64_t k = 0; k < count; ++k) output(p, blocks.at(first + k), t);
    });
  }

  static void output(const CausalConvForward& p, const Block& block, int64_t t) {
    alignas(64) S sum[kMaxBlock];
    const S* bias = channels(p.bias, block);
    for (int64_t j = 0; j < block.width; ++j) sum[j] = bias[j];
    for (int64_t shift = reach(p, block, t); shift > 0; --shift) {
      const IO* from = input(p.u, p.tail, p, block, t - shift);
      const S* weight = channels(p.weight, block) + (p.taps - 1 - shift) * p.channels;
      if (!from) continue;
      TRECVIT_VECTORIZE
      for (int64_t j = 0; j < block.width; ++j) sum[j] += weight[j] * load(from[j]);
    }
    const IO* from = row(p.u, block, t);
    const S* weight = channels(p.weight, block) + (p.taps - 1) * p.channels;
    IO* out = row(p.y, block, t);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < block.width; ++j) store(out[j], sum[j] + weight[j] * load(from[j]));
  }

  static void backward(const CausalConvBackward& p, const Blocks& blocks) {
    const int64_t per_sum = p.batch * p.rows * p.channels;
    Workspace workspace((p.taps + 1) * per_sum * int64_t(sizeof(S)));
    S* partial = static_cast<S*>(workspace.data);  // per tap, then for the bias: (batch, rows, channels)
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int64_t index = 0; index < blocks.count(); ++index) {
      const Block block = blocks.at(index);
      S* sums = partial + block.batch * p.rows * p.channels + block.lane;
      for (int64_t k = 0; k <= p.taps; ++k)
        for (int64_t j = 0; j < block.width; ++j) sums[k * per_sum + j] = S(0);
      for (int64_t t = 0; t < p.frames; ++t) {
        const IO* dy = row(p.dy, block, t);
        if (t + 1 < p.frames) prefetch(row(p.u, block, t + 1), block.width);
        const int64_t shifts = reach(p, block, t);
        for (int64_t shift = shifts; shift >= 0; --shift) {
          const IO* from = input(p.u, p.tail, p, block, t - shift);
          S* sum = sums + (p.taps - 1 - shift) * per_sum;
          if (!from) continue;
          TRECVIT_VECTORIZE
          for (int64_t j = 0; j < block.width; ++j) sum[j] += load(dy[j]) * load(from[j]);
        }
        S* sum = sums + p.taps * per_sum;
        TRECVIT_VECTORIZE
        for (int64_t j = 0; j < block.width; ++j) sum[j] += load(dy[j]);
      }
      for (int64_t t = p.dtail.data ? 1 - p.taps : 0; t < p.frames; ++t) input_gradient(p, block, t);
    }
    const int64_t rows = p.batch * p.rows;
    for (int64_t k = 0; k < p.taps; ++k)
      reduce_rows<S>(partial + k * per_sum, rows, p.channels, static_cast<S*>(p.dweight) + k * p.channels, nullptr,
                     p.threads);
    reduce_rows<S>(partial + p.taps * per_sum, rows, p.channels, static_cast<S*>(p.dbias), nullptr, p.threads);
  }

  // du_t = sum over the later outputs that read frame t.
  static void input_gradient(const CausalConvBackward& p, const Block& block, int64_t t) {
    alignas(64) S sum[kMaxBlock];
    for (int64_t j = 0; j < block.width; ++j) sum[j] = S(0);
    for (int64_t shift = 0; shift < p.taps && t + shift < p.frames; ++shift) {
      if (t + shift < 0) continue;
      if (reach(p, block, t + shift) < shift) break;
      const IO* dy = row(p.dy, block, t + shift);
      const S* weight = channels(p.weight, block) + (p.taps - 1 - shift) * p.channels;
      TRECVIT_VECTORIZE
      for (int64_t j = 0; j < block.width; ++j) sum[j] += weight[j] * load(dy[j]);
    }
    IO* du = input(p.du, p.dtail, p, block, t);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < block.width; ++j) store(du[j], sum[j]);
  }

  static void run(const CausalConvForward& p) { forward(p, Blocks(p.batch, p.rows, p.channels, p.threads)); }
  static void run(const CausalConvBackward& p) { backward(p, Blocks(p.batch, p.rows, p.channels, p.threads)); }
};

template <class P>
void dispatch(const P& p) {
  if (p.batch == 0 || p.rows == 0 || p.channels == 0) return;
  switch (p.dtype) {
    case DType::kFloat32: return Conv<float>::run(p);
    case DType::kBFloat16: return Conv<BFloat16>::run(p);
    case DType::kFloat16: return Conv<Float16>::run(p);
    case DType::kFloat64: return Conv<double>::run(p);
    default: return;  // there is no complex convolution: merged halves are real channels
  }
}

}  // namespace

namespace TRECVIT_ISA {
extern const RecurrentMixerKernels recurrent_mixer_kernels;
const RecurrentMixerKernels recurrent_mixer_kernels = {dispatch<CausalConvForward>, dispatch<CausalConvBackward>};
}  // namespace TRECVIT_ISA
}  // namespace trecvit
