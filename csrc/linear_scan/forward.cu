// Linear scan on a GPU, forward: h_t = a_t h_{t-1} + b_t.
//
// Serial: a thread walks 16 bytes of neighbouring lanes through time. Chunked: one pass over tiles of 128 bytes of
// lanes and some hundred frames. A block holds its tile in shared memory, scans it from zero, waits for the end of the
// tile before it in time (which it then continues to its own end, for the next one), and writes h: a and b are read
// once. Tiles are taken in the order of time by a counter, so that a block only ever waits for one that runs; each end
// follows from the one before it, so that results do not depend on who was faster.
#include "group.cuh"

namespace trecvit {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kResident = 1024;  // of the serial walk, on a multiprocessor
constexpr int kFrames = 8;           // of a tile that a thread holds
constexpr int kMostColumns = 8;      // threads side by side over lanes: 128 bytes
constexpr int kWarps = kThreads / gpu::kWarp;
constexpr int kTileBlocks = 4;       // that a multiprocessor should have registers for; six fit into its shared memory

struct ForwardPlan {
  LinearScanForward p;
  Walk walk;
  Streams streams;
  bool whole_states = false;
  // Tiles. A chain is what follows each other in time: `columns` groups of lanes of a tube.
  int columns = 1, tile_frames = 0;
  int64_t row_chains = 0, chains = 0, tiles = 0;  // chains of a tube, of all; tiles of a chain
  uint32_t* counter = nullptr;                    // tiles taken
  // The ends of each chain's last tile: 32-bit words of a dense state, tagged with its number + 1.
  uint64_t* ends = nullptr;

  ForwardPlan(const LinearScanForward& given, const CudaLaunch& launch)
      : p(joined(given, joins(given.a, given.lanes) && joins(given.b, given.lanes) && joins(given.h, given.lanes))) {
    const int64_t size = element_bytes(p.dtype);
    streams.add(p.a);
    streams.add(p.b);
    streams.look_ahead(kResident);
    streams.whole = true;
    const View* const views[] = {&p.a, &p.b, &p.h};
    for (const View* v : views)
      streams.whole = streams.whole && in_units(*v, p.batch, p.frames, p.rows, size, 16);
    whole_states = states_in_units(p, p.h0, p.h_last, p.states, nullptr);
    LinearScanForward serial = p;
    serial.segments = 1;
    walk = Walk(serial, p.lanes, 16 / size, kResident * launch.multiprocessors);
    while (columns < kMostColumns && columns < walk.groups) columns *= 2;
    // Fewer chains than multiprocessors wait for each other rather than for memory: then narrower, longer tiles.
    while (columns > 2 && walk.tubes() * ceil_div(walk.groups, columns) < launch.multiprocessors) columns /= 2;
    tile_frames = kThreads / columns * kFrames;
    row_chains = ceil_div(walk.groups, columns);
    chains = walk.tubes() * row_chains;
    tiles = ceil_div(p.frames, tile_frames);
    counter = static_cast<uint32_t*>(launch.workspace);
    ends = static_cast<uint64_t*>(launch.workspace) + 2;
  }
  int64_t workspace() const {
    return p.segments == 1 ? 0 : 16 + 2 * p.batch * p.rows * p.lanes * number_bytes(p.dtype);
  }
};

template <class IO>
TRECVIT_KERNEL(kThreads) void linear_scan_forward_kernel(ForwardPlan plan) {
  constexpr int V = 16 / int(sizeof(IO));
  TRECVIT_DYNAMIC_SHARED(memory);
  const LinearScanForward& p = plan.p;
  const int64_t item = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (item >= plan.walk.items()) return;
  Place<V> place(plan.walk, item, false);
  Ring<IO, 2, false> ring(plan.walk, plan.streams, place, memory);
  const bool whole_states = plan.whole_states && place.count == V;
  do {
    Group<IO, V> h;
    h.read_state(state_at<IO>(p, place, p.h0, 0, 1), place.count, whole_states);
    int64_t save = p.states ? p.frames_per_state : -1, saves = 0;
    IO* out = place.template at<IO>(p.h, 0);
    for (int64_t t = 0; t < p.frames; ++t) {
      if (t == save) {
        h.write_state(state_at<IO>(p, place, p.states, saves, plan.walk.saved()), place.count, whole_states);
        save += p.frames_per_state;
        ++saves;
      }
      const char* slot = ring.next();
      Group<IO, V> a, b;
      a.read(slot);
      b.read(slot + ring.pitch);
      advance_all(h, a, b);
      h.write(out, place.count, ring.whole);
      out += p.h.frame_stride;
    }
    h.write_state(state_at<IO>(p, place, p.h_last, 0, 1), place.count, whole_states);
  } while (place.next(plan.walk));
}

template <class IO, int V>
TRECVIT_DEVICE void put_state(char* slot, int pitch, const Group<IO, V>& state) {
  using S = typename Group<IO, V>::S;
  constexpr int kUnit = 16 / int(sizeof(S)), kUnits = V * Group<IO, V>::parts / kUnit;
  S flat[kUnits][kUnit];
  state.give_flat(reinterpret_cast<S(&)[kUnits * kUnit]>(flat));
#pragma unroll
  for (int k = 0; k < kUnits; ++k) write_slot(slot + k * pitch, flat[k]);
}

template <class IO, int V>
TRECVIT_DEVICE void get_state(Group<IO, V>& state, const char* slot, int pitch) {
  using S = typename Group<IO, V>::S;
  constexpr int kUnit = 16 / int(sizeof(S)), kUnits = V * Group<IO, V>::parts / kUnit;
  S flat[kUnits][kUnit];
#pragma unroll
  for (int k = 0; k < kUnits; ++k) read_slot(flat[k], slot + k * pitch);
  state.take_flat(reinterpret_cast<const S(&)[kUnits * kUnit]>(flat));
}

// Shared memory of a tile: a state for each column; states of the warps' ends and products and the carry; a and b.
template <class IO>
constexpr int kColumnBytes = kMostColumns * (16 / int(sizeof(IO))) * int(sizeof(typename Element<IO>::S)) *
                             (Element<IO>::complex ? 2 : 1);
template <class IO>
constexpr int kTileBytes = (2 * kWarps + 1) * kColumnBytes<IO> + kThreads * 2 * kFrames * 16;

template <class IO, int V>
TRECVIT_DEVICE Group<IO, V> shuffle_group_up(Group<IO, V> group, int distance) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    group.at[j].re = gpu::shuffle_up(group.at[j].re, distance);
    if constexpr (Group<IO, V>::complex) group.at[j].im = gpu::shuffle_up(group.at[j].im, distance);
  }
  return group;
}

// Frames in a row as one step: h -> product h + end.
template <class IO, int V>
struct Step {
  Group<IO, V> end, product;

  TRECVIT_DEVICE void none() {
    end.fill(0);
    product.fill(1);
  }
  TRECVIT_DEVICE void follow(const Step& before) {  // this <- this after `before`
    Group<IO, V> zero;
    zero.fill(0);
    end = advanced(product, before.end, end);
    product = advanced(product, before.product, zero);
  }
};

// A thread holds `kFrames` frames of one group of lanes; `columns` threads lie side by side, the others follow in time.
template <class IO>
TRECVIT_KERNEL(kThreads, kTileBlocks) void linear_scan_tiles_kernel(ForwardPlan plan) {
  constexpr int V = 16 / int(sizeof(IO));
  using Lanes = Group<IO, V>;
  using S = typename Lanes::S;
  constexpr int kPitch = kThreads * 16, kStatePitch = kMostColumns * 16, kWords = V * Lanes::parts * int(sizeof(S)) / 4;
  TRECVIT_SHARED(uint32_t, work, 1);
  TRECVIT_DYNAMIC_SHARED(memory);
  const LinearScanForward& p = plan.p;
  const int thread = gpu::thread_index(), column = thread % plan.columns, sub = thread / plan.columns;
  const int warp = thread / gpu::kWarp, lane = thread % gpu::kWarp;
  if (thread == 0) gpu::store_shared(work, gpu::atomic_add(plan.counter, 1));
  gpu::sync_block();
  const int64_t id = gpu::load_shared(work), tile = id / plan.chains, chain = id % plan.chains;
  Place<V> place(plan.walk, 0, false);
  place.tube = chain / plan.row_chains;
  place.batch = place.tube / p.rows;
  place.row = place.tube % p.rows;
  place.first = (chain % plan.row_chains * plan.columns + column) * V;
  const int64_t left = p.lanes - place.first;
  const int count = left >= V ? V : left > 0 ? int(left) : 0;
  const bool whole = plan.streams.whole && count == V, whole_states = plan.whole_states && count == V;
  const int64_t t0 = tile * plan.tile_frames + sub * kFrames;
  const int frames = int(min_of(kFrames, p.frames - t0));  // none: negative

  const IO *a_from = place.template at<const IO>(p.a, t0), *b_from = place.template at<const IO>(p.b, t0);
  char* states = memory + column * 16;
  char* inputs = memory + (2 * kWarps + 1) * kColumnBytes<IO> + thread * 16;  // a and b of a frame, kPitch apart
#pragma unroll
  for (int f = 0; f < kFrames; ++f) {
    const int here = f < frames ? count : 0;
    fetch_slot<IO, V>(inputs + 2 * f * kPitch, a_from + f * p.a.frame_stride, here, whole && f < frames);
    fetch_slot<IO, V>(inputs + (2 * f + 1) * kPitch, b_from + f * p.b.frame_stride, here, whole && f < frames);
  }
  gpu::commit_copies();
  gpu::wait_copies<0>();
  Lanes a_t, b_t, zero;
  zero.fill(0);
  Step<IO, V> here;  // the thread's frames; then with all before them in the warp
  here.none();
#pragma unroll
  for (int f = 0; f < kFrames; ++f) {
    a_t.read(inputs + 2 * f * kPitch);
    b_t.read(inputs + (2 * f + 1) * kPitch);
    advance_all(here.end, a_t, b_t);
    advance_all(here.product, a_t, zero);
  }
  for (int distance = plan.columns; distance < gpu::kWarp; distance *= 2) {
    const Step<IO, V> before = {shuffle_group_up(here.end, distance), shuffle_group_up(here.product, distance)};
    if (lane >= distance) here.follow(before);
  }
  Step<IO, V> start = {shuffle_group_up(here.end, plan.columns), shuffle_group_up(here.product, plan.columns)};
  if (lane < plan.columns) start.none();
  if (lane >= gpu::kWarp - plan.columns) {
    put_state(states + 2 * warp * kColumnBytes<IO>, kStatePitch, here.end);
    put_state(states + (2 * warp + 1) * kColumnBytes<IO>, kStatePitch, here.product);
  }
  gpu::sync_block();
  Step<IO, V> warps;  // all before this warp
  warps.none();
  for (int w = 0; w < warp; ++w) {
    Step<IO, V> next;
    get_state(next.end, states + 2 * w * kColumnBytes<IO>, kStatePitch);
    get_state(next.product, states + (2 * w + 1) * kColumnBytes<IO>, kStatePitch);
    next.follow(warps);
    warps = next;
  }
  start.follow(warps);

  // The carry: the end of the tile before, which the last threads continue to the end of this one.
  Lanes carry;
  char* carry_slot = states + 2 * kWarps * kColumnBytes<IO>;
  if (thread >= kThreads - plan.columns) {
    here.follow(warps);
    uint32_t words[kWords];
    S flat[V * Lanes::parts];
    const int used = count * Lanes::parts * int(sizeof(S)) / 4;
    uint64_t* tagged = plan.ends + ((place.tube * p.lanes + place.first) * Lanes::parts * int(sizeof(S)) / 4);
    if (tile == 0) {
      carry.read_state(state_at<IO>(p, place, p.h0, 0, 1), count, whole_states);
    } else {
      gpu::wait_tagged(tagged, uint32_t(tile), words, used);
      memcpy(flat, words, sizeof flat);
      carry.take_flat(flat);
    }
    if (tile + 1 < plan.tiles) {
      advanced(here.product, carry, here.end).give_flat(flat);
      memcpy(words, flat, sizeof flat);
      gpu::publish_tagged(tagged, uint32_t(tile + 1), words, used);
    }
    put_state(carry_slot, kStatePitch, carry);
  }
  gpu::sync_block();
  if (count == 0) return;
  get_state(carry, carry_slot, kStatePitch);
  Lanes h = advanced(start.product, carry, start.end);
  // The thread's first frame that a state is saved before; it may have more.
  const int64_t saves = (t0 > 0 ? t0 - 1 : 0) / p.frames_per_state;
  int64_t save = p.states ? (saves + 1) * p.frames_per_state : -1;
  S* saved = state_at<IO>(p, place, p.states, saves, plan.walk.saved());
  IO* out = place.template at<IO>(p.h, t0);
#pragma unroll
  for (int f = 0; f < kFrames; ++f) {
    if (f >= frames) break;
    const int64_t t = t0 + f;
    if (t == save) {
      h.write_state(saved, count, whole_states);
      save += p.frames_per_state;
      saved += p.rows * p.lanes * Lanes::parts;
    }
    a_t.read(inputs + 2 * f * kPitch);
    b_t.read(inputs + (2 * f + 1) * kPitch);
    advance_all(h, a_t, b_t);
    h.write(out + f * p.h.frame_stride, count, whole);
    if (t == p.frames - 1) h.write_state(state_at<IO>(p, place, p.h_last, 0, 1), count, whole_states);
  }
}

template <class IO>
const char* run(const ForwardPlan& plan, const CudaLaunch& launch) {
  DeviceScope scope(launch);
  if (plan.p.segments == 1) {
    scope.launch("linear_scan_forward_kernel", linear_scan_forward_kernel<IO>, ceil_div(plan.walk.items(), kThreads),
                 kThreads, plan.streams.shared_bytes(kThreads), plan);
  } else {
    scope.clear(launch.workspace, plan.workspace());
    scope.launch("linear_scan_tiles_kernel", linear_scan_tiles_kernel<IO>, plan.chains * plan.tiles, kThreads,
                 kTileBytes<IO>, plan);
  }
  return scope.error();
}

}  // namespace

extern "C" {
const char* trecvit_cuda_linear_scan_forward(const LinearScanForward* p, const CudaLaunch* launch) {
  if (is_empty(*p)) return nullptr;
  const ForwardPlan plan(*p, *launch);
  return dispatch(*p, [&](auto io) { return run<decltype(io)>(plan, *launch); });
}

int64_t trecvit_cuda_linear_scan_forward_workspace(const LinearScanForward* p, const CudaLaunch* launch) {
  return is_empty(*p) ? 0 : ForwardPlan(*p, *launch).workspace();
}
}

}  // namespace trecvit
