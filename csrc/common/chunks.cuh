// Walking a recurrence back through time on a GPU, chunk by chunk of frames_per_state, each input read once.
//
// From the state saved before a chunk a thread recomputes the states before its frames into shared memory, then walks
// the chunk back. The chunk's inputs stay in shared memory for both; as soon as a frame is done its slots receive that
// frame of the chunk that comes next, so that a whole chunk is under way. What is needed on the way back alone (`once`)
// comes through a short ring.
#pragma once

#include "scan.cuh"

namespace trecvit {
namespace {

constexpr int kOnceRing = 4;                          // frames
constexpr int kMostChunkThreads = 64;                 // of a block
constexpr int64_t kMostBlockBytes = 96 * 1024;        // every GPU allows a block so much shared memory
constexpr int64_t kMultiprocessorBytes = 224 * 1024;  // of an H200

// Neighbouring channels of a thread on the way back, and bytes of a slot of theirs.
template <class IO>
constexpr int kLanesBack = sizeof(IO) <= 4 ? 4 : 16 / int(sizeof(IO));
inline int64_t lanes_back(int64_t size) { return size <= 4 ? 4 : 16 / size; }

struct ChunkPlan {
  Walk walk;
  Streams inputs, once;
  int frames = 0;       // of a chunk, at most
  int state_slots = 1;  // of 16 bytes, for the state before a frame
  int kept_slots = 0;   // of 16 bytes, for what a thread keeps
  int threads = 0;
  int64_t thread_bytes = 0;

  // Once streams and slots are known. resident: threads for whose registers a multiprocessor has room.
  template <class P>
  void finish(const P& p, int64_t channels, int64_t size, int64_t resident, const CudaLaunch& launch) {
    const int64_t unit = lanes_back(size) * size;
    frames = int(min_of(p.frames_per_state, p.frames));
    const int64_t units = frames * inputs.count + min_of(kOnceRing, frames) * once.count;
    thread_bytes = 16 * (frames * state_slots + kept_slots) + unit * units;
    threads = kMostChunkThreads * thread_bytes <= kMostBlockBytes ? kMostChunkThreads : 32;
    const int64_t fit = kMultiprocessorBytes / (threads * thread_bytes) * threads;
    walk = Walk(p, channels, lanes_back(size), min_of(fit, resident) * launch.multiprocessors);
  }
  int64_t blocks() const { return ceil_div(walk.items(), threads); }
  int64_t shared_bytes() const { return threads * thread_bytes; }
};

// A thread's slots.
template <class IO>
struct ChunkSlots {
  static constexpr int kUnit = kLanesBack<IO> * int(sizeof(IO));
  const ChunkPlan& plan;
  char *states, *inputs;
  int state_pitch, pitch;  // bytes between neighbouring slots

  TRECVIT_DEVICE ChunkSlots(const ChunkPlan& b, char* memory) : plan(b) {
    const int threads = gpu::block_threads(), thread = gpu::thread_index();
    state_pitch = threads * 16;
    pitch = threads * kUnit;
    states = memory + thread * 16;
    inputs = memory + (plan.frames * plan.state_slots + plan.kept_slots) * state_pitch + thread * kUnit;
  }
  TRECVIT_DEVICE char* state(int k) const { return states + k * plan.state_slots * state_pitch; }
  TRECVIT_DEVICE char* kept() const { return state(plan.frames); }
  TRECVIT_DEVICE char* input(int k) const { return inputs + k * plan.inputs.count * pitch; }
  TRECVIT_DEVICE char* once(int k) const {
    return inputs + (plan.frames * plan.inputs.count + k % kOnceRing * plan.once.count) * pitch;
  }
};

// `frames` frames from `begin` on of a place; at first the last chunk of the first tube. Everything is fetched from the
// last frame to the first.
template <class IO, int kInputs, int kOnce>
struct Chunk {
  static constexpr int V = kLanesBack<IO>;
  const ChunkPlan& plan;
  Place<V> place;
  const IO *input_from[kInputs], *once_from[kOnce] = {};  // the frames to fetch next; `once` may have fewer streams
  int64_t begin;
  int frames;
  bool left = true, whole;

  TRECVIT_DEVICE Chunk(const ChunkPlan& b, const Place<V>& p)
      : plan(b), place(p), whole(b.inputs.whole && b.once.whole && p.count == V) {
    last();
  }
  TRECVIT_DEVICE void last() { start((place.end - 1) / plan.walk.frames_per_state * plan.walk.frames_per_state); }
  TRECVIT_DEVICE void start(int64_t t) {
    begin = t;
    frames = int(min_of(plan.walk.frames_per_state, place.end - t));
#pragma unroll
    for (int s = 0; s < kInputs; ++s) input_from[s] = at<const IO>(plan.inputs.views[s]);
#pragma unroll
    for (int s = 0; s < kOnce; ++s)
      if (s < plan.once.count) once_from[s] = at<const IO>(plan.once.views[s]);
  }
  // The chunk's last frame in a tensor.
  template <class T>
  TRECVIT_DEVICE T* at(const View& v) const {
    return place.template at<T>(v, begin + frames - 1);
  }
  // On to the chunk before this one in time, or to the next tube's last.
  TRECVIT_DEVICE void advance() {
    if (begin > place.begin) return start(begin - plan.walk.frames_per_state);
    left = place.next(plan.walk);
    if (left) last();
  }
  TRECVIT_DEVICE bool is_first() const { return begin == place.begin; }

  template <bool All, int kStreams>
  TRECVIT_DEVICE void fetch(const IO* (&from)[kStreams], const Streams& streams, char* slot, int pitch) {
    const auto each = [&](bool whole_slots) {
#pragma unroll
      for (int s = 0; s < kStreams; ++s) {
        if (All || s < streams.count) fetch_slot<IO, V>(slot + s * pitch, from[s], place.count, whole_slots);
      }
    };
    if (whole) {
      each(true);
    } else {
      each(false);
    }
#pragma unroll
    for (int s = 0; s < kStreams; ++s) from[s] -= streams.views[s].frame_stride;
  }
  TRECVIT_DEVICE void fetch_inputs(const ChunkSlots<IO>& slots, int k) {
    fetch<true>(input_from, plan.inputs, slots.input(k), slots.pitch);
  }
  TRECVIT_DEVICE void fetch_once(const ChunkSlots<IO>& slots, int k) {
    fetch<false>(once_from, plan.once, slots.once(k), slots.pitch);
  }
  // The first chunk of all.
  TRECVIT_DEVICE void fetch_all(const ChunkSlots<IO>& slots) {
    for (int k = frames - 1; k >= 0; --k) fetch_inputs(slots, k);
    gpu::commit_copies();
  }
  // Before this chunk is recomputed: waits for its inputs, not for the last frames of `once` nor for what `next` can
  // have already.
  TRECVIT_DEVICE void prepare(const ChunkSlots<IO>& slots, Chunk& next) {
    for (int k = frames - 1; k >= 0 && k >= frames - kOnceRing; --k) fetch_once(slots, k);
    if (next.left)
      for (int k = next.frames - 1; k >= frames; --k) next.fetch_inputs(slots, k);
    gpu::commit_copies();
    gpu::wait_copies<1>();
  }
  // On the way back, when frame k's slots have been read: asks for what comes into them.
  TRECVIT_DEVICE void refill(const ChunkSlots<IO>& slots, Chunk& next, int k) {
    if (k >= kOnceRing) fetch_once(slots, k - kOnceRing);
    if (next.left && k < next.frames) next.fetch_inputs(slots, k);
    gpu::commit_copies();
  }
  // After the recomputation, and on the way back before a frame's slots of `once` are read.
  static TRECVIT_DEVICE void wait_first_once() { gpu::wait_copies<0>(); }
  static TRECVIT_DEVICE void wait_once() { gpu::wait_copies<kOnceRing - 1>(); }
};

}  // namespace
}  // namespace trecvit
