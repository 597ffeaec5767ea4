// What the scans over time share on a GPU: who walks what, 16 bytes at a time through shared memory, carries.
//
// A thread owns a group of neighbouring channels of a tube (batch, row) and walks its frames, tube after tube: item =
// (segment, slot, group), the tubes of a slot being slot, slot + slots, ... Frames come asynchronously into slots of
// shared memory that belong to the thread alone, so that nothing but its own copies has to be waited for. Where
// pointers or strides are no multiples of 16 bytes, and in a group cut off at the last channel, the same slots are
// filled one element at a time.
#pragma once

#include <string.h>

#include "device.h"
#include "launch.h"
#include "number.h"
#include "view.h"

namespace trecvit {
namespace {

constexpr int64_t kMaxFramesPerState = 16;

TRECVIT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TRECVIT_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- Vectors of neighbouring values ---------------------------------------------------------------------------

template <int Bytes>
struct PackOf {
  using type = gpu::Pack16;
};
template <>
struct PackOf<8> {
  using type = gpu::Pack8;
};
// What moves V values of a type: 8 bytes, or 16 (several times).
template <class T, int V>
using Pack = typename PackOf<V * int(sizeof(T))>::type;

// V values at `from`, zeros from `count` on. whole: all V are there, aligned to their size or 16 bytes.
template <class T, int V>
TRECVIT_DEVICE void read_lanes(T (&to)[V], const T* from, int count, bool whole) {
  constexpr int kUnits = V * int(sizeof(T)) / int(sizeof(Pack<T, V>));
  if (whole) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      const auto pack = reinterpret_cast<const Pack<T, V>*>(from)[k];
      memcpy(to + k * (V / kUnits), &pack, sizeof pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = j < count ? from[j] : T{};
  }
}

template <class T, int V>
TRECVIT_DEVICE void write_lanes(T* to, const T (&from)[V], int count, bool whole) {
  constexpr int kUnits = V * int(sizeof(T)) / int(sizeof(Pack<T, V>));
  if (whole) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      Pack<T, V> pack;
      memcpy(&pack, from + k * (V / kUnits), sizeof pack);
      if constexpr (sizeof pack == 16) {
        gpu::store16(reinterpret_cast<Pack<T, V>*>(to) + k, pack);
      } else {
        gpu::store8(to, pack);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < count) to[j] = from[j];
  }
}

// A slot is V values in shared memory, 8 or 16 bytes.
template <class T, int V>
TRECVIT_DEVICE void read_slot(T (&to)[V], const char* slot) {
  const auto pack = gpu::load_shared(reinterpret_cast<const Pack<T, V>*>(slot));
  memcpy(&to, &pack, sizeof to);
}

template <class T, int V>
TRECVIT_DEVICE void write_slot(char* slot, const T (&from)[V]) {
  Pack<T, V> pack;
  memcpy(&pack, &from, sizeof from);
  gpu::store_shared(reinterpret_cast<Pack<T, V>*>(slot), pack);
}

// V values of a tensor from a slot, in the type of the state.
TRECVIT_DEVICE float load_upper(uint32_t pair, BFloat16) { return bits_to_float(pair & 0xffff0000u); }
TRECVIT_DEVICE float load_upper(uint32_t pair, Float16) { return load(Float16{uint16_t(pair >> 16)}); }
template <class IO, class S, int V>
TRECVIT_DEVICE void read_values(S (&to)[V], const char* slot) {
  if constexpr (sizeof(IO) == 2) {
    const auto pack = gpu::load_shared(reinterpret_cast<const Pack<IO, V>*>(slot));
#pragma unroll
    for (int j = 0; j < V; j += 2) {
      to[j] = load(IO{uint16_t(pack.words[j / 2])});
      to[j + 1] = load_upper(pack.words[j / 2], IO{});
    }
  } else {
    read_slot(to, slot);
  }
}

// The reverse, to a tensor.
template <class IO, class S, int V>
TRECVIT_DEVICE void write_values(IO* to, const S (&from)[V], int count, bool whole) {
  if constexpr (sizeof(IO) == 2) {
    Pack<IO, V> pack;
#pragma unroll
    for (int j = 0; j < V; j += 2) pack.words[j / 2] = gpu::round_pair<IO>(from[j], from[j + 1]);
    IO raw[V];
    memcpy(&raw, &pack, sizeof raw);
    write_lanes(to, raw, count, whole);
  } else {
    write_lanes(to, from, count, whole);
  }
}

// Starts copying V values into a slot.
template <class T, int V>
TRECVIT_DEVICE void fetch_slot(char* slot, const T* from, int count, bool whole) {
  constexpr int kBytes = V * int(sizeof(T));
  if (whole) {
    if constexpr (kBytes == 16) {
      gpu::copy_async16(slot, from);
    } else {
      gpu::copy_async_small<kBytes>(slot, from);
    }
  } else {
    for (int j = 0; j < V; ++j) gpu::store_shared(reinterpret_cast<T*>(slot) + j, j < count ? from[j] : T{});
  }
}

// Waits until at most `groups` (up to 3) groups of copies are under way.
TRECVIT_DEVICE void wait_for_copies(int groups) {
  if (groups == 1) {
    gpu::wait_copies<1>();
  } else if (groups == 2) {
    gpu::wait_copies<2>();
  } else {
    gpu::wait_copies<3>();
  }
}

// Host: whether groups of `unit` bytes of a view all start at multiples of `unit`.
inline bool in_units(const View& v, int64_t batch, int64_t frames, int64_t rows, int64_t size, int64_t unit) {
  const auto fits = [&](int64_t extent, int64_t stride) { return extent <= 1 || stride * size % unit == 0; };
  return !v.data || (reinterpret_cast<uintptr_t>(v.data) % uintptr_t(unit) == 0 && fits(batch, v.batch_stride) &&
                     fits(frames, v.frame_stride) && fits(rows, v.row_stride));
}
inline bool in_units(const void* dense, int64_t unit) {
  return reinterpret_cast<uintptr_t>(dense) % uintptr_t(unit) == 0;
}

inline int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kFloat64:
    case DType::kComplex64: return 8;
    case DType::kComplex128: return 16;
  }
  return 0;
}
// Of the real type of the state.
inline int64_t state_bytes(DType dtype) { return dtype == DType::kFloat64 || dtype == DType::kComplex128 ? 8 : 4; }

// ---- Who walks what -------------------------------------------------------------------------------------------

struct Walk {
  int64_t batch = 0, frames = 0, rows = 0, channels = 0;
  int64_t groups = 0, slots = 0;
  int64_t step_batch = 0, step_row = 0;  // from a tube to the next one of its slot
  int64_t frames_per_state = 0, segments = 1, segment_frames = 0;
  int64_t walked = 1;  // segments that this launch walks, from the first one (backward: the last one) on

  Walk() = default;
  // threads: how many the GPU runs at once; a slot walks several tubes where there are more.
  template <class P>
  Walk(const P& p, int64_t channels_, int64_t vector, int64_t threads)
      : batch(p.batch), frames(p.frames), rows(p.rows), channels(channels_), groups(ceil_div(channels_, vector)),
        frames_per_state(p.frames_per_state) {
    const int64_t chunks = ceil_div(frames, frames_per_state);
    segment_frames = ceil_div(chunks, p.segments) * frames_per_state;
    segments = walked = ceil_div(frames, segment_frames);
    const int64_t wanted = threads / (groups * segments), most = tubes() < wanted ? tubes() : wanted;
    slots = ceil_div(tubes(), ceil_div(tubes(), most < 1 ? 1 : most));  // as even as it goes
    step_batch = slots / rows;
    step_row = slots % rows;
  }
  TRECVIT_INLINE int64_t tubes() const { return batch * rows; }
  TRECVIT_INLINE int64_t items() const { return groups * slots * walked; }
  TRECVIT_INLINE int64_t saved() const { return (frames - 1) / frames_per_state; }
};

// Where a thread is: V channels from `first` on (`count` of them) of a tube, frames [begin, end). `segment` counts in
// the direction of the walk.
template <int V>
struct Place {
  int64_t first, segment, slot, tube, batch, row, begin, end;
  int count;

  TRECVIT_DEVICE Place(const Walk& w, int64_t item, bool backward) {
    first = item % w.groups * V;
    slot = tube = item / w.groups % w.slots;
    segment = item / w.groups / w.slots;
    count = int(min_of(V, w.channels - first));
    batch = tube / w.rows;
    row = tube % w.rows;
    begin = (backward ? w.segments - 1 - segment : segment) * w.segment_frames;
    end = min_of(begin + w.segment_frames, w.frames);
  }
  // On to the slot's next tube, if there is one.
  TRECVIT_DEVICE bool next(const Walk& w) {
    tube += w.slots;
    batch += w.step_batch;
    row += w.step_row;
    if (row >= w.rows) {
      row -= w.rows;
      ++batch;
    }
    return tube < w.tubes();
  }
  TRECVIT_DEVICE int64_t offset(const View& v, int64_t t) const {
    return batch * v.batch_stride + t * v.frame_stride + row * v.row_stride + first;
  }
  template <class T>
  TRECVIT_DEVICE T* at(const View& v, int64_t t) const {
    return static_cast<T*>(v.data) + offset(v, t);
  }
};

// A ring of frames in shared memory, filled `ahead` frames before the walk needs them, over the ends of tubes too.
constexpr int kMaxStreams = 6;

struct Streams {
  View views[kMaxStreams];
  int count = 0;
  int ahead = 1;       // 1 .. 3
  bool whole = false;  // all in units of 16 bytes

  void add(View view, int64_t half = 0, int64_t size = 0) {  // with the half that is `half` elements behind it
    if (!view.data) return;
    views[count++] = view;
    if (half == 0) return;
    view.data = static_cast<char*>(view.data) + half * size;
    views[count++] = view;
  }
  // Enough bytes under way for a multiprocessor that runs so many threads.
  void look_ahead(int64_t threads) {
    const int64_t frames = ceil_div(64 * 1024, threads * count * 16);
    ahead = int(frames < 2 ? 2 : frames > 3 ? 3 : frames);
  }
  int64_t shared_bytes(int64_t threads) const { return (ahead + 1) * count * 16 * threads; }
};

template <class IO, int kStreams, bool Backward>
struct Ring {
  static constexpr int V = 16 / int(sizeof(IO));
  const Walk& walk;
  const Streams& streams;
  Place<V> place;
  const IO* from[kStreams];
  char* slots;  // of this thread, in stage 0
  int64_t t;
  int pitch, filled = 0, used = 0;
  bool left = true, whole;

  TRECVIT_DEVICE Ring(const Walk& w, const Streams& s, const Place<V>& p, char* memory)
      : walk(w), streams(s), place(p), slots(memory + gpu::thread_index() * 16), pitch(gpu::block_threads() * 16),
        whole(s.whole && p.count == V) {
    begin_tube();
    for (int k = 0; k < streams.ahead; ++k) fetch();
  }
  // Slots behind the ring's, if the launch has given memory for them.
  TRECVIT_DEVICE char* behind() const { return slots + (streams.ahead + 1) * streams.count * pitch; }
  TRECVIT_DEVICE void begin_tube() {
    t = Backward ? place.end - 1 : place.begin;
#pragma unroll
    for (int k = 0; k < kStreams; ++k)
      if (k < streams.count) from[k] = place.template at<const IO>(streams.views[k], t);
  }
  TRECVIT_DEVICE int turn(int stage) const { return stage == streams.ahead ? 0 : stage + 1; }
  TRECVIT_DEVICE void fetch() {
    if (left) {
      char* slot = slots + filled * streams.count * pitch;
#pragma unroll
      for (int k = 0; k < kStreams; ++k) {
        if (k < streams.count) {
          fetch_slot<IO, V>(slot + k * pitch, from[k], place.count, whole);
          from[k] += Backward ? -streams.views[k].frame_stride : streams.views[k].frame_stride;
        }
      }
      if (Backward ? --t < place.begin : ++t == place.end) {
        left = place.next(walk);
        if (left) begin_tube();
      }
    }
    filled = turn(filled);
    gpu::commit_copies();
  }
  // The next frame's slots, one per stream `pitch` bytes apart.
  TRECVIT_DEVICE const char* next() {
    fetch();
    wait_for_copies(streams.ahead);
    const char* slot = slots + used * streams.count * pitch;
    used = turn(used);
    return slot;
  }
};

// ---- States and carries ---------------------------------------------------------------------------------------

// How the real and imaginary parts of a state's V channels lie: imaginary ones `half` values behind, or interleaved.
template <class S, bool Complex, int V>
struct State {
  S re[V], im[Complex ? V : 1];

  TRECVIT_DEVICE Number<S> get(int j) const {
    if constexpr (Complex) return {re[j], im[j]};
    return {re[j], S(0)};
  }
  TRECVIT_DEVICE void set(int j, Number<S> value) {
    re[j] = value.re;
    if constexpr (Complex) im[j] = value.im;
  }
  TRECVIT_DEVICE void fill(S real) {
#pragma unroll
    for (int j = 0; j < V; ++j) set(j, {real, S(0)});
  }
  TRECVIT_DEVICE void read(const S* from, int64_t half, int count, bool whole) {  // null reads as zero
    if (!from) return fill(S(0));
    read_lanes(re, from, count, whole);
    if constexpr (Complex) read_lanes(im, from + half, count, whole);
  }
  TRECVIT_DEVICE void write(S* to, int64_t half, int count, bool whole) const {
    if (!to) return;
    write_lanes(to, re, count, whole);
    if constexpr (Complex) write_lanes(to + half, im, count, whole);
  }
};

// The product of a segment's decays once a reset has cut it off from what came before: no decay is infinite there.
template <class S>
TRECVIT_DEVICE S cut_product() {
  return S(INFINITY);
}

// Turns the ends of segments, walked from zero but for the first, into true ends, one after the other, in place.
// `ends` and `products` are `slots` arrays of `lanes` numbers; lane l is at l / inner * inner * parts + l % inner * step
// in them, its imaginary part `half` behind.
constexpr int kCarryThreads = 64;

template <class S, bool Complex>
TRECVIT_KERNEL(kCarryThreads) void carry_kernel(S* ends, const S* products, int64_t slots, int64_t lanes, int64_t inner,
                                                int64_t step, int64_t half, bool resets) {
  constexpr int64_t kParts = Complex ? 2 : 1;
  const int64_t lane = gpu::block_index() * gpu::block_threads() + gpu::thread_index();
  if (lane >= lanes) return;
  const int64_t at = lane / inner * inner * kParts + lane % inner * step;
  Number<S> carry = {ends[at], Complex ? ends[at + half] : S(0)};
#pragma unroll 4
  for (int64_t s = 1; s < slots; ++s) {
    const int64_t here = at + s * lanes * kParts;
    const Number<S> product = {products[here], Complex ? products[here + half] : S(0)};
    const Number<S> end = {ends[here], Complex ? ends[here + half] : S(0)};
    const bool cut = resets && product.re == cut_product<S>();
    carry = advance<S, Complex>(product, carry, end);
    if (cut) carry = end;  // whatever it held, NaN too
    ends[here] = carry.re;
    if constexpr (Complex) ends[here + half] = carry.im;
  }
}

}  // namespace
}  // namespace trecvit
