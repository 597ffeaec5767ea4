// Gated LRU on a GPU, forward. A thread walks 16 bytes of gates, that is 8 channels of 16-bit types, through time.
//
// Serial: one launch. Chunked: the segments' summaries (end from a zero start, product of decays), their carries, and
// the walk from true starts. The kernel is the same; `Write` tells the walk from the summary.
#include "channels.cuh"

namespace trecvit {
namespace {

constexpr int kThreads = 128;
// Three blocks a multiprocessor leave 168 registers. Most instances need less than 128: then it runs four.
constexpr int kBlocks = 3;
inline int64_t resident_threads(const GatedLruForward& p) {
  return p.complex && p.dtype != DType::kFloat32 ? 384 : 512;
}

struct ForwardPlan {
  GatedLruForward p;
  Walk walk;
  Streams streams;  // gate_a, gate_x, x and v, with imaginary halves
  Carries carries;
  bool whole_states = false;

  ForwardPlan(const GatedLruForward& parameters, const CudaLaunch& launch) : p(parameters) {
    const int64_t size = element_bytes(p.dtype);
    walk = Walk(p, p.channels, 16 / size, resident_threads(p) * launch.multiprocessors);
    carries = Carries(p, walk, launch.workspace);
    const int64_t half = p.complex ? p.channels : 0;
    streams.add(p.gate_a);
    streams.add(p.gate_x);
    streams.add(p.x, half, size);
    streams.add(p.v, half, size);
    streams.look_ahead(resident_threads(p));
    streams.whole = half * size % 16 == 0;
    const View* const views[] = {&p.x, &p.gate_x, &p.gate_a, &p.v, &p.y};
    for (const View* v : views)
      streams.whole = streams.whole && in_units(*v, p.batch, p.frames, p.rows, size, 16);
    whole_states = states_in_units(p, p.h0, p.h_last, p.states);
  }
};

template <class IO, bool Complex, bool Write>
TRECVIT_KERNEL(kThreads, kBlocks) void gated_lru_forward_kernel(ForwardPlan plan) {
  using S = typename StateOf<IO>::type;
  constexpr int V = 16 / int(sizeof(IO)), kParts = Complex ? 2 : 1;
  TRECVIT_DYNAMIC_SHARED(memory);
  const GatedLruForward& p = plan.p;
  const Walk& walk = plan.walk;
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= walk.items()) return;
  Place<V> place(walk, item, false);
  Ring<IO, 2 + 2 * kParts, false> ring(walk, plan.streams, place, memory);
  const Channels<S, Complex, V> channels(p, place.first, place.count, ring.behind(), ring.pitch);
  const bool whole = ring.whole, whole_states = plan.whole_states && place.count == V;
  const int64_t half = p.channels, saved_step = p.rows * p.channels * kParts;
  const int64_t first_save = place.begin ? place.begin : p.frames_per_state;
  do {
    State<S, Complex, V> h;
    const void* before = place.segment == 0 ? p.h0 : Write ? plan.carries.before(place.segment) : nullptr;
    h.read(state_at<S, Complex>(p, place, before, 0, 1), half, place.count, whole_states);
    [[maybe_unused]] State<S, Complex, V> product;
    [[maybe_unused]] bool cut = false;
    if constexpr (!Write) product.fill(S(1));
    [[maybe_unused]] int64_t save = p.states && Write ? first_save : -1;
    [[maybe_unused]] S* saved =
        state_at<S, Complex>(p, place, p.states, first_save / p.frames_per_state - 1, walk.saved());
    [[maybe_unused]] IO* y = Write ? place.template at<IO>(p.y, place.begin) : nullptr;
    for (int64_t t = place.begin; t < place.end; ++t) {
      const bool reset = resets_at(p, place.batch, t);
      if constexpr (Write) {
        if (t == save) {
          h.write(saved, half, place.count, whole_states);
          save += p.frames_per_state;
          saved += saved_step;
        }
      }
      const char* slot = ring.next();
      S i[V], r[V], theta[V];
      open_gates<IO>(r, slot, channels, channels.kGateA);
      open_gates<IO>(i, slot + ring.pitch, channels, channels.kGateX);
      channels.phases(theta);
      State<S, Complex, V> x;
      read_numbers<IO>(x, slot + 2 * ring.pitch, ring.pitch);
      if (reset) {
        h.fill(S(0));  // whatever it held, NaN too
        cut = true;
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Gates<S> g = gates_of(i[j], r[j], channels.decay[j], reset, p.convex);
        const Number<S> a = decay_of<S, Complex>(g, theta[j]), x_t = x.get(j);
        const S scale = g.beta * g.i;
        h.set(j, advance<S, Complex>(a, h.get(j), {scale * x_t.re, scale * x_t.im}));
        if constexpr (!Write) product.set(j, advance<S, Complex>(a, product.get(j), {S(0), S(0)}));
      }
      if constexpr (Write) {
        State<S, Complex, V> out = h;
        if (p.v.data) {
          State<S, Complex, V> v;
          read_numbers<IO>(v, slot + (2 + kParts) * ring.pitch, ring.pitch);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            out.re[j] *= gelu_tanh(v.re[j]).value;
            if constexpr (Complex) out.im[j] *= gelu_tanh(v.im[j]).value;
          }
        }
        write_numbers(y, out, half, place.count, whole);
        y += p.y.frame_stride;
      }
    }
    if constexpr (Write) {
      if (place.end == p.frames)
        h.write(state_at<S, Complex>(p, place, p.h_last, 0, 1), half, place.count, whole_states);
    } else {
      if (cut) product.fill(cut_product<S>());
      h.write(state_at<S, Complex>(p, place, plan.carries.before(place.segment + 1), 0, 1), half, place.count,
              whole_states);
      const void* products = plan.carries.products + place.segment * plan.carries.bytes;
      product.write(state_at<S, Complex>(p, place, products, 0, 1), half, place.count, whole_states);
    }
  } while (place.next(walk));
}

template <class IO, bool Complex>
const char* run(const ForwardPlan& plan, const CudaLaunch& launch) {
  using S = typename StateOf<IO>::type;
  const int64_t parameters = Channels<S, Complex, 16 / sizeof(IO)>::shared_bytes(plan.p, kThreads);
  DeviceScope scope(launch);
  if (plan.walk.segments > 1) {
    ForwardPlan summary = plan;
    summary.streams = {};
    summary.streams.add(plan.p.gate_a);
    summary.streams.add(plan.p.gate_x);
    summary.streams.add(plan.p.x, Complex ? plan.p.channels : 0, sizeof(IO));
    summary.streams.look_ahead(resident_threads(plan.p));
    summary.streams.whole = plan.streams.whole;
    summary.walk.walked = plan.walk.segments - 1;
    scope.launch("gated_lru_forward_kernel (summary)", gated_lru_forward_kernel<IO, Complex, false>,
                 ceil_div(summary.walk.items(), kThreads), kThreads,
                 summary.streams.shared_bytes(kThreads) + parameters, summary);
    launch_carries<S, Complex>(scope, plan.p, plan.walk, plan.carries);
  }
  scope.launch("gated_lru_forward_kernel", gated_lru_forward_kernel<IO, Complex, true>,
               ceil_div(plan.walk.items(), kThreads), kThreads, plan.streams.shared_bytes(kThreads) + parameters, plan);
  return scope.error();
}

}  // namespace

extern "C" {
const char* trecvit_cuda_gated_lru_forward(const GatedLruForward* p, const CudaLaunch* launch) {
  if (is_empty(*p)) return nullptr;
  const ForwardPlan plan(*p, *launch);
  return dispatch(*p, [&](auto io) {
    using IO = decltype(io);
    return p->complex ? run<IO, true>(plan, *launch) : run<IO, false>(plan, *launch);
  });
}

int64_t trecvit_cuda_gated_lru_forward_workspace(const GatedLruForward* p, const CudaLaunch* launch) {
  return is_empty(*p) ? 0 : Carries::workspace(*p, ForwardPlan(*p, *launch).walk);
}
}

}  // namespace trecvit
