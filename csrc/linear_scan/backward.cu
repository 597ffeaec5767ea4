// Linear scan on a GPU, backward: G_t = dh_t + conj(a_{t+1}) G_{t+1}, db_t = G_t, da_t = conj(h_{t-1}) G_t.
//
// A thread walks neighbouring lanes back through time (common/chunks.cuh). Chunked: the adjoint recurrence alone gives
// every segment's end and product of decays (`summary`), then come their carries, then the walk from true ends.
#include "../common/chunks.cuh"
#include "group.cuh"

namespace trecvit {
namespace {

constexpr int kSummaryThreads = 128;
constexpr int64_t kSummaryResident = 1024, kResident = 384;

struct BackwardPlan {
  LinearScanBackward p;
  ChunkPlan chunks;
  Walk summary;
  Streams recurrence;  // a, dh: what the summary reads
  char *ends = nullptr, *products = nullptr;
  int64_t state = 0;  // bytes of one dense state
  bool whole_states = false;

  BackwardPlan(const LinearScanBackward& given, const CudaLaunch& launch)
      : p(joined(given, joins(given.a, given.lanes) && joins(given.b, given.lanes) && joins(given.dh, given.lanes) &&
                            joins(given.da, given.lanes) && joins(given.db, given.lanes))) {
    const int64_t size = element_bytes(p.dtype), unit = lanes_back(size) * size;
    const View* const views[] = {&p.a, &p.b, &p.dh, &p.da, &p.db};
    bool whole = true;
    recurrence.whole = true;
    for (const View* v : views) {
      whole = whole && in_units(*v, p.batch, p.frames, p.rows, size, unit);
      recurrence.whole = recurrence.whole && in_units(*v, p.batch, p.frames, p.rows, size, 16);
    }
    chunks.inputs.add(p.a);
    chunks.inputs.add(p.b);
    chunks.once.add(p.dh);
    chunks.inputs.whole = chunks.once.whole = whole;
    chunks.finish(p, p.lanes, size, kResident, launch);
    recurrence.add(p.a);
    recurrence.add(p.dh);
    recurrence.look_ahead(kSummaryResident);
    summary = Walk(p, p.lanes, 16 / size, kSummaryResident * launch.multiprocessors);
    summary.walked = summary.segments - 1;
    state = p.batch * p.rows * p.lanes * number_bytes(p.dtype);
    ends = static_cast<char*>(launch.workspace);
    products = ends + summary.walked * state;
    whole_states = states_in_units(p, p.h0, p.states, p.dh0, p.dh_last);
  }
  TRECVIT_INLINE const void* before(int64_t segment) const {
    return segment ? ends + (segment - 1) * state : p.dh_last;
  }
};

template <class IO>
TRECVIT_KERNEL(kSummaryThreads) void linear_scan_summary_kernel(BackwardPlan plan) {
  constexpr int V = 16 / int(sizeof(IO));
  TRECVIT_DYNAMIC_SHARED(memory);
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= plan.summary.items()) return;
  Place<V> place(plan.summary, item, true);
  Ring<IO, 2, true> ring(plan.summary, plan.recurrence, place, memory);
  const bool whole_states = plan.whole_states && place.count == V;
  do {
    Group<IO, V> carry, product;
    carry.read_state(state_at<IO>(plan.p, place, place.segment ? nullptr : plan.p.dh_last, 0, 1), place.count,
                     whole_states);
    product.fill(1);
    for (int64_t t = place.end - 1; t >= place.begin; --t) {
      const char* slot = ring.next();
      Group<IO, V> a, dh;
      a.read(slot);
      dh.read(slot + ring.pitch);
      add_all(carry, dh);
      pull_back_all(carry, a);
      pull_back_all(product, a);
    }
    carry.write_state(state_at<IO>(plan.p, place, plan.before(place.segment + 1), 0, 1), place.count, whole_states);
    const void* products = plan.products + place.segment * plan.state;
    product.write_state(state_at<IO>(plan.p, place, products, 0, 1), place.count, whole_states);
  } while (place.next(plan.summary));
}

template <class IO>
TRECVIT_KERNEL(kMostChunkThreads, kResident / kMostChunkThreads) void linear_scan_backward_kernel(BackwardPlan plan) {
  constexpr int V = kLanesBack<IO>;
  using Lanes = Group<IO, V>;
  using S = typename Lanes::S;
  TRECVIT_DYNAMIC_SHARED(memory);
  const LinearScanBackward& p = plan.p;
  const Walk& walk = plan.chunks.walk;
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= walk.items()) return;
  const ChunkSlots<IO> slots(plan.chunks, memory);
  Chunk<IO, 2, 1> next(plan.chunks, Place<V>(walk, item, true));
  const int count = next.place.count;
  const bool whole = next.whole, whole_states = plan.whole_states && count == V;
  Lanes carry;
  carry.fill(0);
  bool new_tube = true;
  next.fetch_all(slots);
  while (next.left) {
    Chunk<IO, 2, 1> chunk = next;
    const Place<V>& place = chunk.place;
    next.advance();
    if (new_tube) carry.read_state(state_at<IO>(p, place, plan.before(place.segment), 0, 1), count, whole_states);
    Lanes h;
    const int64_t save = chunk.begin / p.frames_per_state - 1;
    const S* saved =
        save < 0 ? state_at<IO>(p, place, p.h0, 0, 1) : state_at<IO>(p, place, p.states, save, walk.saved());
    h.read_state(saved, count, whole_states);
    chunk.prepare(slots, next);
    for (int k = 0; k < chunk.frames; ++k) {
      S flat[V * Lanes::parts];
      h.give_flat(flat);
      write_slot(slots.state(k), flat);
      Lanes a, b;
      a.read(slots.input(k));
      b.read(slots.input(k) + slots.pitch);
      advance_all(h, a, b);
    }
    chunk.wait_first_once();
    IO *da_to = chunk.template at<IO>(p.da), *db_to = chunk.template at<IO>(p.db);
    for (int k = chunk.frames - 1; k >= 0; --k) {
      S flat[V * Lanes::parts];
      read_slot(flat, slots.state(k));
      Lanes a, dh, da;
      da.take_flat(flat);
      a.read(slots.input(k));
      chunk.wait_once();
      dh.read(slots.once(k));
      chunk.refill(slots, next, k);
      add_all(carry, dh);
      const Lanes before = da;
      da = carry;
      pull_back_all(da, before);
      carry.write(db_to, count, whole);
      da.write(da_to, count, whole);
      db_to -= p.db.frame_stride;
      da_to -= p.da.frame_stride;
      pull_back_all(carry, a);
    }
    new_tube = chunk.is_first();
    if (new_tube && place.begin == 0) carry.write_state(state_at<IO>(p, place, p.dh0, 0, 1), count, whole_states);
  }
}

template <class IO>
const char* run(const BackwardPlan& plan, const CudaLaunch& launch) {
  using S = typename Element<IO>::S;
  DeviceScope scope(launch);
  if (plan.summary.walked > 0) {
    scope.launch("linear_scan_summary_kernel", linear_scan_summary_kernel<IO>,
                 ceil_div(plan.summary.items(), kSummaryThreads), kSummaryThreads,
                 plan.recurrence.shared_bytes(kSummaryThreads), plan);
    const int64_t lanes = plan.p.batch * plan.p.rows * plan.p.lanes;
    if (plan.summary.walked > 1)
      scope.launch("linear_scan carry_kernel", carry_kernel<S, Element<IO>::complex>, ceil_div(lanes, kCarryThreads),
                   kCarryThreads, 0, reinterpret_cast<S*>(plan.ends), reinterpret_cast<const S*>(plan.products),
                   plan.summary.walked, lanes, lanes, int64_t(Element<IO>::complex ? 2 : 1), int64_t(1), false);
  }
  scope.launch("linear_scan_backward_kernel", linear_scan_backward_kernel<IO>, plan.chunks.blocks(),
               plan.chunks.threads, plan.chunks.shared_bytes(), plan);
  return scope.error();
}

}  // namespace

extern "C" {
const char* trecvit_cuda_linear_scan_backward(const LinearScanBackward* p, const CudaLaunch* launch) {
  if (is_empty(*p)) return nullptr;
  const BackwardPlan plan(*p, *launch);
  return dispatch(*p, [&](auto io) { return run<decltype(io)>(plan, *launch); });
}

int64_t trecvit_cuda_linear_scan_backward_workspace(const LinearScanBackward* p, const CudaLaunch* launch) {
  if (is_empty(*p)) return 0;
  const BackwardPlan plan(*p, *launch);
  return 2 * plan.summary.walked * plan.state;
}
}

}  // namespace trecvit
