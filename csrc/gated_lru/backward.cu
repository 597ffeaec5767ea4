// Gated LRU on a GPU, backward. A thread walks 4 channels (2 of float64) back through time, chunk by chunk
// (common/chunks.cuh).
//
// Chunked: the adjoint recurrence alone gives every segment's end and product (`summary`), then their carries, then the
// walk. Sums for the parameters: per thread over chunks in double, then over threads in a fixed order by sum_kernel.
#include "../common/chunks.cuh"
#include "channels.cuh"

namespace trecvit {
namespace {

constexpr int kSummaryThreads = 128, kSummaryBlocks = 3;  // 168 registers
// Blocks of the walk on a multiprocessor: 200 registers are enough for a float state's real numbers, others get 255.
constexpr int blocks_back(bool is_complex, int64_t size) { return is_complex || size == 8 ? 4 : 5; }

struct BackwardPlan {
  GatedLruBackward p;
  ChunkPlan chunks;
  Walk summary;
  Streams recurrence;  // gate_a, dy, v: what the summary reads
  Carries carries;
  char* sums = nullptr;  // (kinds, slots * segments, channels), state type
  int kinds = 0;         // r_dl; r_dphi if complex; the biases', gate_a first, if there are any
  bool whole_states = false;

  BackwardPlan(const GatedLruBackward& parameters, const CudaLaunch& launch) : p(parameters) {
    const int64_t size = element_bytes(p.dtype), unit = lanes_back(size) * size, half = p.complex ? p.channels : 0;
    bool whole = half * size % unit == 0, whole16 = half * size % 16 == 0;
    const View* const views[] = {&p.x, &p.gate_x, &p.gate_a, &p.v, &p.dy, &p.dx, &p.dgate_x, &p.dgate_a, &p.dv};
    for (const View* v : views) {
      whole = whole && in_units(*v, p.batch, p.frames, p.rows, size, unit);
      whole16 = whole16 && in_units(*v, p.batch, p.frames, p.rows, size, 16);
    }
    chunks.inputs.add(p.gate_a);
    chunks.inputs.add(p.gate_x);
    chunks.inputs.add(p.x, half, size);
    chunks.once.add(p.dy, half, size);
    chunks.once.add(p.v, half, size);
    chunks.inputs.whole = chunks.once.whole = whole;
    chunks.state_slots = p.complex ? 2 : 1;
    kinds = (p.complex ? 2 : 1) + (p.gate_x_bias ? 2 : 0);
    chunks.kept_slots = parameter_slots(p) + kinds * int(lanes_back(size)) / 2;
    chunks.finish(p, p.channels, size, blocks_back(p.complex, size) * kMostChunkThreads, launch);
    recurrence.add(p.gate_a);
    recurrence.add(p.dy, half, size);
    recurrence.add(p.v, half, size);
    recurrence.look_ahead(kSummaryBlocks * kSummaryThreads);
    recurrence.whole = whole16;
    summary = Walk(p, p.channels, 16 / size, kSummaryBlocks * kSummaryThreads * launch.multiprocessors);
    summary.walked = summary.segments - 1;
    carries = Carries(p, chunks.walk, launch.workspace);
    sums = static_cast<char*>(launch.workspace) + Carries::workspace(p, chunks.walk);
    whole_states = states_in_units(p, p.h0, p.states, p.dh0) && in_units(p.dh_last, 16);
  }
  // Of 16 bytes, for a thread's phases and biases on the way back.
  static TRECVIT_INLINE int parameter_slots(const GatedLruForward& p) {
    return (p.complex ? 1 : 0) + (p.gate_x_bias ? 2 : 0);
  }
  int64_t sum_rows() const { return chunks.walk.slots * chunks.walk.segments; }
  int64_t workspace() const {
    return Carries::workspace(p, chunks.walk) + kinds * sum_rows() * p.channels * state_bytes(p.dtype);
  }
};

// A thread's sums over chunks, in shared memory, two to a slot.
template <class S, int V>
struct Sums {
  char* slots;
  int pitch;

  TRECVIT_DEVICE char* slot(int kind, int j) const { return slots + (kind * V + j) / 2 * pitch; }
  TRECVIT_DEVICE void clear(int kinds) const {
    const double zeros[2] = {};
    for (int k = 0; k < kinds * V; k += 2) write_slot(slots + k / 2 * pitch, zeros);
  }
  TRECVIT_DEVICE void add(int kind, const S (&of_chunk)[V]) const {
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      double pair[2];
      read_slot(pair, slot(kind, j));
      pair[0] += of_chunk[j];
      pair[1] += of_chunk[j + 1];
      write_slot(slot(kind, j), pair);
    }
  }
  TRECVIT_DEVICE void write(int kind, S* to, int count) const {
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      double pair[2];
      read_slot(pair, slot(kind, j));
      if (j < count) to[j] = S(pair[0]);
      if (j + 1 < count) to[j + 1] = S(pair[1]);
    }
  }
};

// dy from dz = dy gelu(v), and dv.
template <class S>
TRECVIT_DEVICE S through_gate(S dz, S y, S v, S& dv) {
  const Gelu<S> gelu = gelu_tanh(v);
  dv = dz * y * gelu.slope;
  return dz * gelu.value;
}

// The adjoint recurrence over a segment from zero (the first one walked: from dh_last), and the product of its decays.
template <class IO, bool Complex>
TRECVIT_KERNEL(kSummaryThreads, kSummaryBlocks) void gated_lru_summary_kernel(BackwardPlan plan) {
  using S = typename StateOf<IO>::type;
  constexpr int V = 16 / int(sizeof(IO)), kParts = Complex ? 2 : 1;
  TRECVIT_DYNAMIC_SHARED(memory);
  const GatedLruBackward& p = plan.p;
  const Walk& walk = plan.summary;
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= walk.items()) return;
  Place<V> place(walk, item, true);
  Ring<IO, 1 + 2 * kParts, true> ring(walk, plan.recurrence, place, memory);
  const Channels<S, Complex, V> channels(p, place.first, place.count, ring.behind(), ring.pitch);
  const bool whole_states = plan.whole_states && place.count == V;
  do {
    State<S, Complex, V> carry, product;
    carry.read(state_at<S, Complex>(p, place, place.segment ? nullptr : p.dh_last, 0, 1), p.channels, place.count,
               whole_states);
    product.fill(S(1));
    bool cut = false;
    for (int64_t t = place.end - 1; t >= place.begin; --t) {
      const bool reset = resets_at(p, place.batch, t);
      const char* slot = ring.next();
      S r[V], theta[V];
      open_gates<IO>(r, slot, channels, channels.kGateA);
      channels.phases(theta);
      State<S, Complex, V> dy;
      read_numbers<IO>(dy, slot + ring.pitch, ring.pitch);
      if (p.v.data) {
        State<S, Complex, V> v;
        read_numbers<IO>(v, slot + (1 + kParts) * ring.pitch, ring.pitch);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          dy.re[j] *= gelu_tanh(v.re[j]).value;
          if constexpr (Complex) dy.im[j] *= gelu_tanh(v.im[j]).value;
        }
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Gates<S> g = gates_of(S(0), r[j], channels.decay[j], false, p.convex);
        const Number<S> a = decay_of<S, Complex>(g, theta[j]), here = dy.get(j), later = carry.get(j);
        carry.set(j, pull_back<S, Complex>(a, {here.re + later.re, here.im + later.im}));
        product.set(j, pull_back<S, Complex>(a, product.get(j)));
      }
      if (reset) {
        carry.fill(S(0));
        cut = true;
      }
    }
    if (cut) product.fill(cut_product<S>());
    carry.write(state_at<S, Complex>(p, place, plan.carries.before(place.segment + 1), 0, 1), p.channels, place.count,
                whole_states);
    const void* products = plan.carries.products + place.segment * plan.carries.bytes;
    product.write(state_at<S, Complex>(p, place, products, 0, 1), p.channels, place.count, whole_states);
  } while (place.next(walk));
}

// Gates of a frame from its slots.
template <class IO, bool Complex, class S, int V>
TRECVIT_DEVICE void gates_at(Gates<S> (&gates)[V], const GatedLruBackward& p, const Channels<S, Complex, V>& channels,
                             const char* slot, int pitch, bool reset) {
  S r[V], i[V];
  open_gates<IO>(r, slot, channels, channels.kGateA);
  open_gates<IO>(i, slot + pitch, channels, channels.kGateX);
#pragma unroll
  for (int j = 0; j < V; ++j) gates[j] = gates_of(i[j], r[j], channels.decay[j], reset, p.convex);
}

template <class IO, bool Complex>
TRECVIT_KERNEL(kMostChunkThreads, blocks_back(Complex, sizeof(IO))) void gated_lru_backward_kernel(BackwardPlan plan) {
  using S = typename StateOf<IO>::type;
  constexpr int V = kLanesBack<IO>, kParts = Complex ? 2 : 1;
  using ThisChunk = Chunk<IO, 2 + kParts, 2 * kParts>;
  TRECVIT_DYNAMIC_SHARED(memory);
  const GatedLruBackward& p = plan.p;
  const Walk& walk = plan.chunks.walk;
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= walk.items()) return;
  const ChunkSlots<IO> slots(plan.chunks, memory);
  const Place<V> start(walk, item, true);
  ThisChunk next(plan.chunks, start);
  const Channels<S, Complex, V> channels(p, start.first, start.count, slots.kept(), slots.state_pitch);
  const int64_t half = p.channels;
  const int count = start.count;
  const bool whole = next.whole, whole_states = plan.whole_states && count == V, mixer = p.v.data;
  const Sums<S, V> sums = {slots.kept() + BackwardPlan::parameter_slots(p) * slots.state_pitch, slots.state_pitch};
  sums.clear(plan.kinds);
  State<S, Complex, V> carry;
  carry.fill(S(0));
  bool new_tube = true;
  next.fetch_all(slots);
  while (next.left) {
    ThisChunk chunk = next;
    const Place<V>& place = chunk.place;
    next.advance();
    const uint32_t resets = resets_of(p, place.batch, chunk.begin, chunk.frames);
    if (new_tube) {
      const void* from = place.segment ? plan.carries.before(place.segment) : p.dh_last;
      carry.read(state_at<S, Complex>(p, place, from, 0, 1), half, count, whole_states);
    }
    State<S, Complex, V> h;  // recomputed: the state before frame k, then after it
    const int64_t save = chunk.begin / p.frames_per_state - 1;
    const S* saved = save < 0 ? state_at<S, Complex>(p, place, p.h0, 0, 1)
                              : state_at<S, Complex>(p, place, p.states, save, walk.saved());
    h.read(saved, half, count, whole_states);
    chunk.prepare(slots, next);
    for (int k = 0; k < chunk.frames; ++k) {
      const bool reset = resets >> k & 1;
      write_slot(slots.state(k), h.re);
      if constexpr (Complex) write_slot(slots.state(k) + slots.state_pitch, h.im);
      if (reset) h.fill(S(0));
      Gates<S> gates[V];
      gates_at<IO>(gates, p, channels, slots.input(k), slots.pitch, reset);
      S theta[V];
      channels.phases(theta);
      State<S, Complex, V> x;
      read_numbers<IO>(x, slots.input(k) + 2 * slots.pitch, slots.pitch);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Number<S> a = decay_of<S, Complex>(gates[j], theta[j]), x_t = x.get(j);
        const S scale = gates[j].beta * gates[j].i;
        h.set(j, advance<S, Complex>(a, h.get(j), {scale * x_t.re, scale * x_t.im}));
      }
    }
    chunk.wait_first_once();
    IO *dx_to = chunk.template at<IO>(p.dx), *dgate_x_to = chunk.template at<IO>(p.dgate_x);
    IO *dgate_a_to = chunk.template at<IO>(p.dgate_a), *dv_to = mixer ? chunk.template at<IO>(p.dv) : nullptr;

    S r_dl[V] = {}, r_dphi[V] = {}, dbias_a[V] = {}, dbias_x[V] = {};  // over the chunk
    for (int k = chunk.frames - 1; k >= 0; --k) {
      const bool reset = resets >> k & 1;
      State<S, Complex, V> before, x, G;
      read_slot(before.re, slots.state(k));
      if constexpr (Complex) read_slot(before.im, slots.state(k) + slots.state_pitch);
      Gates<S> gates[V];
      gates_at<IO>(gates, p, channels, slots.input(k), slots.pitch, reset);
      S theta[V];
      channels.phases(theta);
      read_numbers<IO>(x, slots.input(k) + 2 * slots.pitch, slots.pitch);
      chunk.wait_once();
      read_numbers<IO>(G, slots.once(k), slots.pitch);
      if (mixer) {
        State<S, Complex, V> v;
        read_numbers<IO>(v, slots.once(k) + kParts * slots.pitch, slots.pitch);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          G.re[j] = through_gate(G.re[j], h.re[j], v.re[j], v.re[j]);
          if constexpr (Complex) G.im[j] = through_gate(G.im[j], h.im[j], v.im[j], v.im[j]);
        }
        write_numbers(dv_to, v, half, count, whole);
      }
      chunk.refill(slots, next, k);

      State<S, false, V> dgate_x, dgate_a;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Number<S> later = carry.get(j), a = decay_of<S, Complex>(gates[j], theta[j]);
        Number<S> G_t = G.get(j);
        G_t.re += later.re;
        if constexpr (Complex) G_t.im += later.im;
        const StepGradient<S> d = step_backward<S, Complex>(gates[j], a, x.get(j), before.get(j), G_t,
                                                            channels.decay[j], theta[j], reset, p.convex);
        x.set(j, d.dx);
        dgate_x.re[j] = d.dgate_x;
        dgate_a.re[j] = d.dgate_a;
        r_dl[j] += d.r_dl;
        if constexpr (Complex) r_dphi[j] += d.r_dphi;
        carry.set(j, pull_back<S, Complex>(a, G_t));
      }
      if (channels.biased) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          dbias_a[j] += dgate_a.re[j];
          dbias_x[j] += dgate_x.re[j];
        }
      }
      if (reset) carry.fill(S(0));
      h = before;
      write_numbers(dx_to, x, half, count, whole);
      write_numbers(dgate_x_to, dgate_x, 0, count, whole);
      write_numbers(dgate_a_to, dgate_a, 0, count, whole);
      dx_to -= p.dx.frame_stride;
      dgate_x_to -= p.dgate_x.frame_stride;
      dgate_a_to -= p.dgate_a.frame_stride;
      dv_to -= mixer ? p.dv.frame_stride : 0;
    }
    sums.add(0, r_dl);
    if constexpr (Complex) sums.add(1, r_dphi);
    if (channels.biased) {
      sums.add(kParts, dbias_a);
      sums.add(kParts + 1, dbias_x);
    }
    new_tube = chunk.is_first();
    if (new_tube && place.begin == 0)
      carry.write(state_at<S, Complex>(p, place, p.dh0, 0, 1), half, count, whole_states);
  }

  const int64_t row = start.segment * walk.slots + start.slot, rows = walk.slots * walk.segments;
  S* to = reinterpret_cast<S*>(plan.sums) + row * p.channels + start.first;
  for (int kind = 0; kind < plan.kinds; ++kind) sums.write(kind, to + kind * rows * p.channels, count);
}

// Adds `rows` rows of `channels` sums, kind by kind, in a fixed order.
struct Totals {
  void *da_param, *kind_1, *kind_2, *kind_3;  // null: not wanted
};
constexpr int kSumThreads = 256, kSumChannels = 32, kSumParts = kSumThreads / kSumChannels;

template <class S>
TRECVIT_KERNEL(kSumThreads) void gated_lru_sum_kernel(const S* sums, int64_t rows, int64_t channels, Totals totals,
                                                      const S* a_param) {
  TRECVIT_SHARED(double, parts, kSumThreads);
  const int64_t blocks = ceil_div(channels, kSumChannels), kind = gpu::block_index() / blocks;
  const int thread = gpu::thread_index(), part = thread / kSumChannels;
  const int64_t channel = gpu::block_index() % blocks * kSumChannels + thread % kSumChannels;
  S* to = static_cast<S*>(kind == 0   ? totals.da_param
                          : kind == 1 ? totals.kind_1
                          : kind == 2 ? totals.kind_2
                                      : totals.kind_3);
  if (!to) return;
  double total = 0;
  if (channel < channels) {
#pragma unroll 4
    for (int64_t row = part; row < rows; row += kSumParts) total += sums[(kind * rows + row) * channels + channel];
  }
  gpu::store_shared(parts + thread, total);
  gpu::sync_block();
  if (part != 0 || channel >= channels) return;
  for (int k = 1; k < kSumParts; ++k) total += gpu::load_shared(parts + k * kSumChannels + thread);
  // da_param = sum of r dl times d(decay)/d(a_param) = -c sigmoid(a_param).
  if (kind == 0) total *= -kDecayExponent * sigmoid(double(a_param[channel]));
  to[channel] = S(total);
}

template <class IO, bool Complex>
const char* run(const BackwardPlan& plan, const CudaLaunch& launch) {
  using S = typename StateOf<IO>::type;
  const GatedLruBackward& p = plan.p;
  DeviceScope scope(launch);
  if (plan.summary.walked > 0) {
    const int64_t shared = plan.recurrence.shared_bytes(kSummaryThreads) +
                           Channels<S, Complex, 16 / sizeof(IO)>::shared_bytes(p, kSummaryThreads);
    scope.launch("gated_lru_summary_kernel", gated_lru_summary_kernel<IO, Complex>,
                 ceil_div(plan.summary.items(), kSummaryThreads), kSummaryThreads, shared, plan);
    launch_carries<S, Complex>(scope, p, plan.summary, plan.carries);
  }
  scope.launch("gated_lru_backward_kernel", gated_lru_backward_kernel<IO, Complex>, plan.chunks.blocks(),
               plan.chunks.threads, plan.chunks.shared_bytes(), plan);
  const Totals totals = Complex ? Totals{p.da_param, p.da_imag, p.dgate_a_bias, p.dgate_x_bias}
                                : Totals{p.da_param, p.dgate_a_bias, p.dgate_x_bias, nullptr};
  scope.launch("gated_lru_sum_kernel", gated_lru_sum_kernel<S>, plan.kinds * ceil_div(p.channels, kSumChannels),
               kSumThreads, 0, reinterpret_cast<const S*>(plan.sums), plan.sum_rows(), p.channels, totals,
               static_cast<const S*>(p.a_param));
  return scope.error();
}

}  // namespace

extern "C" {
const char* trecvit_cuda_gated_lru_backward(const GatedLruBackward* p, const CudaLaunch* launch) {
  if (is_empty(*p)) return nullptr;
  const BackwardPlan plan(*p, *launch);
  return dispatch(*p, [&](auto io) {
    using IO = decltype(io);
    return p->complex ? run<IO, true>(plan, *launch) : run<IO, false>(plan, *launch);
  });
}

int64_t trecvit_cuda_gated_lru_backward_workspace(const GatedLruBackward* p, const CudaLaunch* launch) {
  return is_empty(*p) ? 0 : BackwardPlan(*p, *launch).workspace();
}
}

}  // namespace trecvit
