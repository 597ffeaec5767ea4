// Gated LRU on the CPU: one thread walks a block of lanes through time, gates computed on the fly.
//
// Serial schedule: one segment. Chunked: every segment but the last first finds its product of decays and its last
// state from a zero start (`summarise`), a carry scan over segments gives every segment its true start, and all replay.
// The backward pass recomputes gates and states of `frames_per_state` frames at a time into scratch on the stack.
#include <new>

#include "../common/blocks.h"
#include "../common/isa.h"
#include "params.h"
#include "step.h"

namespace trecvit {
namespace {

template <class IO_, bool Complex_, bool Convex_, bool Mixer_>
struct Traits {
  using IO = IO_;
  using S = typename StateOf<IO_>::type;
  static constexpr bool complex = Complex_, convex = Convex_, mixer = Mixer_;
  using Vector = Numbers<S, Complex_>;  // one number per lane of a block
};

// The lanes of a block, their parameters copied next to each other.
template <class K>
struct Lanes {
  using S = typename K::S;
  Block block;
  int64_t half;  // distance of the imaginary half in a row of x
  alignas(64) S decay[kMaxBlock], theta[K::complex ? kMaxBlock : 1];
  alignas(64) S bias_x[K::mixer ? kMaxBlock : 1], bias_a[K::mixer ? kMaxBlock : 1];

  Lanes(const GatedLruForward& p, const S* decays, Block b) : block(b), half(p.channels) {
    for (int64_t done = 0, c = b.lane % p.channels; done < b.width; c = 0) {
      const int64_t count = min_of(b.width - done, p.channels - c);  // lanes up to the end of the channels
      for (int64_t j = 0; j < count; ++j) decay[done + j] = decays[c + j];
      if constexpr (K::complex)
        for (int64_t j = 0; j < count; ++j) theta[done + j] = static_cast<const S*>(p.a_imag)[c + j];
      if constexpr (K::mixer) {
        for (int64_t j = 0; j < count; ++j) bias_x[done + j] = static_cast<const S*>(p.gate_x_bias)[c + j];
        for (int64_t j = 0; j < count; ++j) bias_a[done + j] = static_cast<const S*>(p.gate_a_bias)[c + j];
      }
      done += count;
    }
  }
  TRECVIT_INLINE S phase(int64_t j) const { return K::complex ? theta[j] : S(0); }
  // This block's row of a tensor at frame t. Tensors with the lanes of x and those with the lanes of the gates
  // differ in nothing but their strides.
  template <class T = typename K::IO>
  T* row(const View& v, int64_t t) const {
    return static_cast<T*>(v.data) + block.batch * v.batch_stride + t * v.frame_stride + block.row * v.row_stride +
           block.first;
  }
  // This block in a dense array (batch, slots, rows, lanes) of states; null stays null.
  S* state(const GatedLruForward& p, const void* states, int64_t slot, int64_t slots) const {
    if (!states) return nullptr;
    const int64_t row_width = K::complex ? 2 * p.channels : p.channels;
    const int64_t first = K::complex ? block.row * row_width + block.first : block.lane;
    return static_cast<S*>(const_cast<void*>(states)) + (block.batch * slots + slot) * p.rows * row_width + first;
  }
};

template <class K>
TRECVIT_INLINE Number<typename K::S> load_at(const typename K::IO* from, int64_t half, int64_t j) {
  if constexpr (K::complex) return {load(from[j]), load(from[half + j])};
  return {load(from[j]), typename K::S(0)};
}

template <class K>
TRECVIT_INLINE void store_at(typename K::IO* to, int64_t half, int64_t j, Number<typename K::S> value) {
  store(to[j], value.re);
  if constexpr (K::complex) store(to[half + j], value.im);
}

template <class K>
TRECVIT_INLINE void prefetch_at(const typename K::IO* from, int64_t half, int64_t width) {
  prefetch(from, width);
  if constexpr (K::complex) prefetch(from + half, width);
}

inline bool resets_at(const GatedLruForward& p, int64_t batch, int64_t t) {
  return p.reset ? p.reset[batch * p.frames + t] != 0 : (p.starts && t == 0);
}

// A row of gates from their pre-activations.
template <class K>
TRECVIT_INLINE void open_gates(const typename K::IO* from, const typename K::S* bias, int64_t width,
                               typename K::S* to) {
  TRECVIT_VECTORIZE
  for (int64_t j = 0; j < width; ++j) to[j] = sigmoid(K::mixer ? load(from[j]) + bias[j] : load(from[j]));
}

// z = y * gelu_tanh(v), both halves alike.
template <class S>
TRECVIT_INLINE S gated(S y, S v) {
  return y * gelu_tanh(v).value;
}

// One frame forward: h is advanced, and either the output row is stored or the decays are multiplied up.
template <class K, bool Write>
void step_frame(const GatedLruForward& p, const Lanes<K>& lanes, int64_t t, bool reset, typename K::Vector& h,
                typename K::Vector& product) {
  using S = typename K::S;
  const int64_t width = lanes.block.width, half = lanes.half;
  const auto* x = lanes.row(p.x, t);
  const auto* gate_x = lanes.row(p.gate_x, t);
  const auto* gate_a = lanes.row(p.gate_a, t);
  const auto* v = K::mixer ? lanes.row(p.v, t) : nullptr;
  auto* y = Write ? lanes.row(p.y, t) : nullptr;
  if (reset) h.fill(width, S(0));  // whatever it held, NaN too
  alignas(64) S i[kMaxBlock], r[kMaxBlock];
  open_gates<K>(gate_x, lanes.bias_x, width, i);
  open_gates<K>(gate_a, lanes.bias_a, width, r);
  TRECVIT_VECTORIZE
  for (int64_t j = 0; j < width; ++j) {
    const Gates<S> g = gates_of<S, K::convex>(i[j], r[j], lanes.decay[j], reset);
    const Number<S> a = decay_of<S, K::complex>(g, lanes.phase(j));
    const Number<S> x_t = load_at<K>(x, half, j);
    const S scale = g.beta * g.i;
    const Number<S> next = advance<S, K::complex>(a, h.get(j), {scale * x_t.re, scale * x_t.im});
    h.set(j, next);
    if constexpr (!Write) product.set(j, advance<S, K::complex>(a, product.get(j), {S(0), S(0)}));
    if constexpr (Write && K::mixer) {
      const Number<S> v_t = load_at<K>(v, half, j);
      Number<S> z = {gated(next.re, v_t.re), S(0)};
      if constexpr (K::complex) z.im = gated(next.im, v_t.im);
      store_at<K>(y, half, j, z);
    } else if constexpr (Write) {
      store_at<K>(y, half, j, next);
    }
  }
}

constexpr int64_t kPanel = 32;  // blocks side by side; their states stay in the second cache

// One line of every row of frame t: its page's address is then known when the frame comes. The rest of the row the
// processor fetches faster by itself.
template <class K>
TRECVIT_INLINE void announce(const GatedLruForward& p, const Lanes<K>& lanes, int64_t t) {
  __builtin_prefetch(lanes.row(p.x, t));
  __builtin_prefetch(lanes.row(p.gate_x, t));
  __builtin_prefetch(lanes.row(p.gate_a, t));
  if constexpr (K::mixer) __builtin_prefetch(lanes.row(p.v, t));
  __builtin_prefetch(lanes.row(p.y, t), 1);
}

template <class K>
struct Walker {
  Lanes<K> lanes;
  typename K::Vector h;
};

// Blocks [first, first + count) through a segment, from the states `from` (null: from the start of time).
template <class K>
void walk(const GatedLruForward& p, const typename K::S* decay, const Blocks& blocks, int64_t first, int64_t count,
          Segment segment, const typename K::Vector* from) {
  const int64_t saved = (p.frames - 1) / p.frames_per_state;
  const Workspace memory(count * int64_t(sizeof(Walker<K>)));
  Walker<K>* const walkers = static_cast<Walker<K>*>(memory.data);
  for (int64_t k = 0; k < count; ++k) {
    const Lanes<K>& lanes = *new (&walkers[k].lanes) Lanes<K>(p, decay, blocks.at(first + k));
    if (from) {
      walkers[k].h = from[k];
    } else {
      walkers[k].h.read(lanes.state(p, p.h0, 0, 1), lanes.half, 1, lanes.block.width);
    }
  }
  for (int64_t t = segment.begin; t < segment.end; ++t) {
    const bool save = p.states && t > 0 && t % p.frames_per_state == 0;
    for (int64_t k = 0; k < count; ++k) {
      const Lanes<K>& lanes = walkers[k].lanes;
      auto& h = walkers[k].h;
      if (t + 1 < segment.end) announce(p, lanes, t + 1);
      if (save) h.write(lanes.state(p, p.states, t / p.frames_per_state - 1, saved), lanes.half, 1, lanes.block.width);
      step_frame<K, true>(p, lanes, t, resets_at(p, lanes.block.batch, t), h, h);
    }
  }
  if (segment.end < p.frames) return;
  for (int64_t k = 0; k < count; ++k) {
    const Lanes<K>& lanes = walkers[k].lanes;
    walkers[k].h.write(lanes.state(p, p.h_last, 0, 1), lanes.half, 1, lanes.block.width);
  }
}

template <class K>
void forward(const GatedLruForward& p, const typename K::S* decay, const Blocks& blocks) {
  using S = typename K::S;
  using Vector = typename K::Vector;
  if (p.segments == 1) {
    walk_panels(blocks, kPanel, p.threads, [&](int64_t first, int64_t count) {
      walk<K>(p, decay, blocks, first, count, {0, p.frames}, nullptr);
    });
    return;
  }
  const auto summarise = [&](int64_t block, int64_t s, Vector& h, Vector& product) {
    const Lanes<K> lanes(p, decay, blocks.at(block));
    const Segment segment = segment_at(s, p.segments, p.frames, p.frames_per_state);
    h.read(s == 0 ? lanes.state(p, p.h0, 0, 1) : nullptr, lanes.half, 1, lanes.block.width);
    product.fill(lanes.block.width, S(1));
    for (int64_t t = segment.begin; t < segment.end; ++t) {
      const bool reset = resets_at(p, lanes.block.batch, t);
      if (reset) product.fill(lanes.block.width, S(0));
      step_frame<K, false>(p, lanes, t, reset, h, product);
    }
  };
  const auto replay = [&](int64_t block, int64_t s, const Vector* from) {
    walk<K>(p, decay, blocks, block, 1, segment_at(s, p.segments, p.frames, p.frames_per_state), from);
  };
  const auto cuts = [&](int64_t block, int64_t s) {
    const Segment segment = segment_at(s, p.segments, p.frames, p.frames_per_state);
    for (int64_t t = segment.begin; t < segment.end; ++t)
      if (resets_at(p, blocks.at(block).batch, t)) return true;
    return false;
  };
  walk_segments<Vector>(blocks.count(), p.segments, p.threads, summarise, replay, cuts);
}

#include "cpu_backward.h"

// In units of log 2, as gates_of wants them.
template <class K>
void decays_of(const GatedLruForward& p, typename K::S* decay) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t c = 0; c < p.channels; ++c)
    decay[c] = typename K::S(-kDecayExponent * kLog2E * softplus(double(static_cast<const typename K::S*>(p.a_param)[c])));
}

template <class K>
struct Run {
  static void forward_pass(const GatedLruForward& p) {
    const bool join = !K::complex && joins(p.x, p.channels) && joins(p.gate_x, p.channels) &&
                      joins(p.gate_a, p.channels) && joins(p.y, p.channels) && joins(p.v, p.channels);
    Workspace decay(p.channels * int64_t(sizeof(typename K::S)));
    decays_of<K>(p, static_cast<typename K::S*>(decay.data));
    forward<K>(p, static_cast<typename K::S*>(decay.data),
               Blocks(p.batch, join ? 1 : p.rows, join ? p.rows * p.channels : p.channels, p.threads));
  }
  static void backward_pass(const GatedLruBackward& p) {
    const bool join = !K::complex && joins(p.x, p.channels) && joins(p.gate_x, p.channels) &&
                      joins(p.gate_a, p.channels) && joins(p.v, p.channels) && joins(p.dy, p.channels) &&
                      joins(p.dx, p.channels) && joins(p.dv, p.channels) &&
                      joins(p.dgate_x, p.channels) && joins(p.dgate_a, p.channels);
    Workspace decay(p.channels * int64_t(sizeof(typename K::S)));
    decays_of<K>(p, static_cast<typename K::S*>(decay.data));
    backward<K>(p, static_cast<typename K::S*>(decay.data),
                Blocks(p.batch, join ? 1 : p.rows, join ? p.rows * p.channels : p.channels, p.threads));
  }
};

// Calls Run<K>::forward_pass or ::backward_pass for the K that the parameters name.
template <class P, class IO, bool Complex>
void dispatch(const P& p) {
  const auto call = [&](auto traits) {
    using K = decltype(traits);
    if constexpr (__is_same(P, GatedLruForward)) {
      Run<K>::forward_pass(p);
    } else {
      Run<K>::backward_pass(p);
    }
  };
  if (p.v.data) {
    call(Traits<IO, Complex, false, true>{});
  } else if (p.convex) {
    call(Traits<IO, Complex, true, false>{});
  } else {
    call(Traits<IO, Complex, false, false>{});
  }
}

template <class P>
void dispatch(const P& p) {
  if (p.batch == 0 || p.rows == 0 || p.channels == 0) return;
  switch (p.dtype) {
    case DType::kFloat32: return p.complex ? dispatch<P, float, true>(p) : dispatch<P, float, false>(p);
    case DType::kBFloat16: return p.complex ? dispatch<P, BFloat16, true>(p) : dispatch<P, BFloat16, false>(p);
    case DType::kFloat16: return p.complex ? dispatch<P, Float16, true>(p) : dispatch<P, Float16, false>(p);
    case DType::kFloat64: return p.complex ? dispatch<P, double, true>(p) : dispatch<P, double, false>(p);
    default: return;  // complex storage belongs to linear_scan
  }
}

}  // namespace

namespace TRECVIT_ISA {
extern const GatedLruKernels gated_lru_kernels;
const GatedLruKernels gated_lru_kernels = {dispatch<GatedLruForward>, dispatch<GatedLruBackward>};
}  // namespace TRECVIT_ISA
}  // namespace trecvit
