// One streamed frame (T = 1) of the whole recurrent mixer in one launch:
//
//   x = convolution of tail and u, rounded to the type of u        (batch, rows, channels)
//   gates = x W_x + b_x, x W_a + b_a, W block-diagonal by heads
//   h_last = one step of the gated LRU from h0;  z = h_last * gelu_tanh(v)
//
// At batch 1 there are few tokens and the latency counts: a block has a tile of tokens and of one head's gate channels,
// small enough that the blocks of one frame fill a GPU. It asks for all that it will read at once, convolves the head's
// channels into shared memory, multiplies (step_products.cuh), and goes on in the registers that hold the sums.
// Complex: gate channel c works on the channels c and c + channels / 2 of x, which may be other heads': they are
// convolved anew. h_last may be h0 itself.
#include "../common/launch.h"
#include "../gated_lru/step.h"
#include "conv.cuh"
#include "step_products.cuh"

namespace trecvit {
namespace {

struct StepPlan {
  MixerStep p;
  int64_t tubes = 0, gates = 0, width = 0, head_gates = 0;  // width: channels of a head
  int64_t gate_tiles = 0;                                   // of a head
  int chunk = 0;                                            // channels of a head that are multiplied at a time
  bool packs = false, weight_packs = false;                 // u, tails and the convolution's parameters; gate weights
};

struct Token {
  int64_t tube, batch, row;
  bool exists, reset;

  // Tokens past the end repeat the last one, but for what is written.
  TRECVIT_DEVICE Token(const StepPlan& plan, int64_t index) : exists(index < plan.tubes) {
    tube = exists ? index : plan.tubes - 1;
    batch = plan.p.batch == 1 ? 0 : tube / plan.p.rows;
    row = tube - batch * plan.p.rows;
    reset = plan.p.reset ? plan.p.reset[batch] != 0 : plan.p.starts;
  }
};

// Element `at` of a parameter other than the gates' weights.
template <class IO>
TRECVIT_DEVICE typename StateOf<IO>::type parameter(const MixerStep& p, const void* from, int64_t at) {
  return p.narrow ? load(static_cast<const IO*>(from)[at]) : static_cast<const typename StateOf<IO>::type*>(from)[at];
}

// The convolution's output for one channel.
template <class IO>
TRECVIT_DEVICE IO convolve(const MixerStep& p, const Token& token, int64_t channel) {
  using S = typename StateOf<IO>::type;
  const int64_t before = p.tail.data ? p.taps - 1 : 0;
  const IO* tail = before ? row_of<const IO>(p.tail, token.batch, token.row) + channel : nullptr;
  S sum = parameter<IO>(p, p.conv_bias, channel);
#pragma unroll 4
  for (int64_t i = 0; i < before; ++i) {
    const S product = parameter<IO>(p, p.conv_weight, i * p.channels + channel) * load(tail[i * p.tail.frame_stride]);
    if (!token.reset) sum += product;
  }
  sum += parameter<IO>(p, p.conv_weight, (p.taps - 1) * p.channels + channel) *
         load(row_of<const IO>(p.u, token.batch, token.row)[channel]);
  IO rounded;
  store(rounded, sum);
  return rounded;
}

// x of a tile of tokens, channels [start, start + count) of a head, into shared memory; zeros up to `padded`.
template <class IO, class Products>
TRECVIT_DEVICE void convolve_elements(const StepPlan& plan, typename Products::X* x, int64_t tile, int64_t first,
                                      int count, int padded) {
  for (int item = gpu::thread_index(); item < kStepTokens * padded; item += kStepThreads) {
    const int i_token = item / padded, k = item - i_token * padded;
    const Token token(plan, tile * kStepTokens + i_token);
    const bool valid = token.exists && k < count;
    Products::put(x, plan.chunk, i_token, k, valid ? convolve<IO>(plan.p, token, first + k) : IO{});
  }
}

template <class IO, class S, int Lanes>
TRECVIT_DEVICE void load_lanes(const MixerStep& p, const void* from, int64_t at, S (&to)[Lanes]) {
  if (p.narrow) {
    unpack<IO>(gpu::load16(static_cast<const IO*>(from) + at), to);
  } else {
    load_parameters<S>(from, at, to);
  }
}

// The same where 16 bytes hold the same channels everywhere, for up to kMaxTaps taps: a thread keeps to its channels.
template <class IO, class Products>
TRECVIT_DEVICE void convolve_packs(const StepPlan& plan, typename Products::X* x, int64_t tile, int64_t first,
                                   int count, int padded) {
  using S = typename StateOf<IO>::type;
  constexpr int Lanes = kLanesPerPack<IO>;
  static_assert(Products::kMaxChunk / Lanes <= kStepThreads, "a row of packs has a thread each");
  const MixerStep& p = plan.p;
  const int per_token = padded / Lanes, tokens = kStepThreads / per_token, taps = int(p.taps);
  const int k = gpu::thread_index() % per_token * Lanes;
  const int64_t channel = first + k;
  if (gpu::thread_index() >= tokens * per_token) return;
  S weight[kMaxTaps][Lanes] = {}, bias[Lanes] = {};
  if (k < count) {
    load_lanes<IO>(p, p.conv_bias, channel, bias);
#pragma unroll
    for (int i = 0; i < kMaxTaps; ++i)
      if (i < taps) load_lanes<IO>(p, p.conv_weight, (taps - 1 - i) * p.channels + channel, weight[i]);
  }
#pragma unroll 2
  for (int i_token = gpu::thread_index() / per_token; i_token < kStepTokens; i_token += tokens) {
    const Token token(plan, tile * kStepTokens + i_token);
    gpu::Pack16 frames[kMaxTaps] = {};  // [i]: i frames ago
    if (token.exists && k < count) {
      frames[0] = gpu::load16(row_of<const IO>(p.u, token.batch, token.row) + channel);
      if (p.tail.data) {
        const IO* tail = row_of<const IO>(p.tail, token.batch, token.row) + channel;
#pragma unroll
        for (int i = 1; i < kMaxTaps; ++i)
          if (i < taps) frames[i] = gpu::load16(tail + (taps - 1 - i) * p.tail.frame_stride);
      }
    }
    S sum[Lanes], value[Lanes];
#pragma unroll
    for (int j = 0; j < Lanes; ++j) sum[j] = bias[j];
#pragma unroll
    for (int i = kMaxTaps - 1; i >= 0; --i) {
      if (i >= taps || (i > 0 && (token.reset || !p.tail.data))) continue;
      unpack<IO>(frames[i], value);
#pragma unroll
      for (int j = 0; j < Lanes; ++j) sum[j] += weight[i][j] * value[j];
    }
    Products::put(x, plan.chunk, i_token, k, pack_lanes<IO>(sum));
  }
}

// The tail after this frame: frames move up by one, those from before a reset are zeros. Unit: what is copied at once.
template <class IO, class Unit>
TRECVIT_DEVICE void shift_tail(const StepPlan& plan, int64_t tile, int64_t first) {
  const MixerStep& p = plan.p;
  constexpr int kLanes = int(sizeof(Unit) / sizeof(IO));
  const int64_t per_token = plan.width / kLanes;
  for (int64_t item = gpu::thread_index(); item < kStepTokens * per_token; item += kStepThreads) {
    const Token token(plan, tile * kStepTokens + item / per_token);
    if (!token.exists) return;
    const int64_t channel = first + item % per_token * kLanes;
    const IO* u = row_of<const IO>(p.u, token.batch, token.row) + channel;
    const IO* tail = p.tail.data && !token.reset ? row_of<const IO>(p.tail, token.batch, token.row) + channel : nullptr;
    IO* to = row_of<IO>(p.new_tail, token.batch, token.row) + channel;
#pragma unroll 4
    for (int64_t i = 0; i < p.taps - 1; ++i) {
      const IO* from = i == p.taps - 2 ? u : tail ? tail + (i + 1) * p.tail.frame_stride : nullptr;
      *reinterpret_cast<Unit*>(to + i * p.new_tail.frame_stride) = from ? *reinterpret_cast<const Unit*>(from) : Unit{};
    }
  }
}

template <class IO, bool Complex>
TRECVIT_KERNEL(kStepThreads, sizeof(IO) == 8 ? 1 : Complex ? 2 : 3) void mixer_step_kernel(StepPlan plan) {
  using S = typename StateOf<IO>::type;
  using Products = typename ProductsOf<IO>::type;
  using X = typename Products::X;
  TRECVIT_DYNAMIC_SHARED(memory);
  X* const x_tile = reinterpret_cast<X*>(memory);
  const MixerStep& p = plan.p;
  const int64_t gate_tile = gpu::block_index() % plan.gate_tiles, rest = gpu::block_index() / plan.gate_tiles;
  const int64_t head = rest % p.heads, tile = rest / p.heads, first = gate_tile * kStepGates;
  const GateWeights<IO> weights{static_cast<const IO*>(p.gate_x_weight) + head * plan.width * plan.head_gates,
                                static_cast<const IO*>(p.gate_a_weight) + head * plan.width * plan.head_gates,
                                plan.width, plan.head_gates, first, plan.weight_packs};
  constexpr int kTokens = Products::kTokens, kChannels = Products::kChannels;

  // What this thread's outputs need besides x and the products, asked for before the wait for shared memory.
  Number<S> h[kTokens][kChannels], v[kTokens][kChannels];
  S bias_x[kChannels], bias_a[kChannels], a_param[kChannels], theta[kChannels];
  const auto is_gate = [&](int j) { return first + Products::channel(j) < plan.head_gates; };
  const auto gate_at = [&](int j) { return head * plan.head_gates + first + Products::channel(j); };
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    bias_x[j] = bias_a[j] = a_param[j] = theta[j] = S(0);
    if (!is_gate(j)) continue;
    bias_x[j] = parameter<IO>(p, p.gate_x_bias, gate_at(j));
    bias_a[j] = parameter<IO>(p, p.gate_a_bias, gate_at(j));
    a_param[j] = parameter<IO>(p, p.a_param, gate_at(j));
    if constexpr (Complex) theta[j] = parameter<IO>(p, p.a_imag, gate_at(j));
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const Token token(plan, tile * kStepTokens + Products::token(i));
    const IO* v_row = row_of<const IO>(p.v, token.batch, token.row);
    const S* h_row = static_cast<const S*>(p.h0) + token.tube * p.channels;
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      h[i][j] = v[i][j] = {S(0), S(0)};
      if (!is_gate(j)) continue;
      v[i][j].re = load(v_row[gate_at(j)]);
      if (p.h0) h[i][j].re = h_row[gate_at(j)];
      if constexpr (Complex) v[i][j].im = load(v_row[gate_at(j) + plan.gates]);
      if (Complex && p.h0) h[i][j].im = h_row[gate_at(j) + plan.gates];
    }
  }

  Products products;
  for (int64_t start = 0; start < plan.width; start += plan.chunk) {
    const int count = int(min_of(plan.chunk, plan.width - start));
    const int padded = (count + Products::kUnit - 1) / Products::kUnit * Products::kUnit;
    if (start > 0) gpu::sync_block();  // the last chunk has been read
    Products::fetch(weights, x_tile, plan.chunk, start, count, padded);
    if (plan.packs) {
      convolve_packs<IO, Products>(plan, x_tile, tile, head * plan.width + start, count, padded);
    } else {
      convolve_elements<IO, Products>(plan, x_tile, tile, head * plan.width + start, count, padded);
    }
    if (p.new_tail.data && gate_tile == 0 && start == 0) {  // what it reads is in the cache now
      if (plan.packs) {
        shift_tail<IO, gpu::Pack16>(plan, tile, head * plan.width);
      } else {
        shift_tail<IO, IO>(plan, tile, head * plan.width);
      }
    }
    gpu::wait_copies<0>();
    gpu::sync_block();
    products.multiply(weights, x_tile, plan.chunk, start, count, padded);
  }

#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    if (!is_gate(j)) continue;
    const int64_t c = gate_at(j), c_im = c + plan.gates;
    const S decay = decay_per_gate(a_param[j]);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const Token token(plan, tile * kStepTokens + Products::token(i));
      if (!token.exists) continue;
      // In the real case gate channels are channels of the head: x is still there, unless other chunks came after it.
      Number<S> x = {S(0), S(0)};
      if (!Complex && plan.width <= plan.chunk) {
        x.re = Products::at(x_tile, plan.chunk, Products::token(i), int(first) + Products::channel(j));
      } else {
        x.re = load(convolve<IO>(p, token, c));
        if constexpr (Complex) x.im = load(convolve<IO>(p, token, c_im));
      }
      const S i_t = sigmoid(products.sum_x[i][j] + bias_x[j]), r_t = sigmoid(products.sum_a[i][j] + bias_a[j]);
      const Gates<S> g = gates_of<S, false>(i_t, r_t, decay, token.reset);
      const Number<S> a = decay_of<S, Complex>(g, theta[j]);
      const S scale = g.beta * g.i;
      if (token.reset) h[i][j] = {S(0), S(0)};  // whatever it held, NaN too
      const Number<S> next = advance<S, Complex>(a, h[i][j], {scale * x.re, scale * x.im});
      S* h_row = static_cast<S*>(p.h_last) + token.tube * p.channels;
      IO* z_row = row_of<IO>(p.z, token.batch, token.row);
      h_row[c] = next.re;
      store(z_row[c], next.re * gelu_tanh(v[i][j].re).value);
      if constexpr (Complex) {
        h_row[c_im] = next.im;
        store(z_row[c_im], next.im * gelu_tanh(v[i][j].im).value);
      }
    }
  }
}

template <class IO>
const char* run(const MixerStep& p, const CudaLaunch& launch) {
  using Products = typename ProductsOf<IO>::type;
  constexpr int64_t kLanes = kLanesPerPack<IO>;
  const auto fits = [&](const View& v, int64_t frames) { return in_units(v, p.batch, frames, p.rows, sizeof(IO), 16); };
  StepPlan plan;
  plan.p = p;
  plan.tubes = p.batch * p.rows;
  plan.gates = p.complex ? p.channels / 2 : p.channels;
  plan.width = p.channels / p.heads;
  plan.head_gates = plan.gates / p.heads;
  plan.gate_tiles = ceil_div(plan.head_gates, kStepGates);
  plan.chunk = int(min_of(ceil_div(plan.width, 16) * 16, Products::kMaxChunk));
  plan.packs = p.taps <= kMaxTaps && plan.width % kLanes == 0 && in_units(p.conv_weight, 16) &&
               in_units(p.conv_bias, 16) && fits(p.u, 1) && fits(p.tail, p.taps - 1) && fits(p.new_tail, p.taps - 1);
  plan.weight_packs = plan.head_gates % kLanes == 0 && in_units(p.gate_x_weight, 16) && in_units(p.gate_a_weight, 16);
  const auto kernel = p.complex ? mixer_step_kernel<IO, true> : mixer_step_kernel<IO, false>;
  DeviceScope scope(launch);
  scope.launch("mixer_step_kernel", kernel, ceil_div(plan.tubes, kStepTokens) * p.heads * plan.gate_tiles, kStepThreads,
               Products::shared_bytes(plan.chunk), plan);
  return scope.error();
}

}  // namespace

extern "C" const char* trecvit_cuda_mixer_step(const MixerStep* p, const CudaLaunch* launch) {
  if (p->batch == 0 || p->rows == 0 || p->channels == 0) return nullptr;
  switch (p->dtype) {
    case DType::kFloat32: return run<float>(*p, *launch);
    case DType::kBFloat16: return run<BFloat16>(*p, *launch);
    case DType::kFloat16: return run<Float16>(*p, *launch);
    case DType::kFloat64: return run<double>(*p, *launch);
    default: return "mixer_step: complex storage belongs to linear_scan";
  }
}

}  // namespace trecvit
