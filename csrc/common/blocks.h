// How the CPU kernels of the recurrent ops divide their work: blocks of neighbouring lanes, walked over time by one
// thread each, and segments of time where there are too few blocks.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "number.h"
#include "view.h"

namespace trecvit {
namespace {

constexpr int64_t kMaxBlock = 256;  // lanes per block; bounds the scratch on the stack (a few rows a lane array)
constexpr int64_t kMinBlock = 16;   // one AVX-512 register of floats

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lanes [first, first + width) of row `row` of sequence `batch`; `lane` counts them over all rows.
struct Block {
  int64_t batch, row, first, width, lane;
};

// All blocks of `batches` x `rows` x `run` lanes, as even as the width allows.
struct Blocks {
  int64_t batches, rows, run, width, per_run;

  Blocks(int64_t batches_, int64_t rows_, int64_t run_, int threads) : batches(batches_), rows(rows_), run(run_) {
    const int64_t share = ceil_div(batches * rows * run, threads);  // narrower blocks when lanes are few
    width = min_of(kMaxBlock, ceil_div(share > kMinBlock ? share : kMinBlock, kMinBlock) * kMinBlock);
    per_run = ceil_div(run, width);
  }
  int64_t count() const { return batches * rows * per_run; }
  Block at(int64_t index) const {
    const int64_t first = index % per_run * width;
    const int64_t row = index / per_run % rows;
    return {index / per_run / rows, row, first, min_of(width, run - first), row * run + first};
  }
};

// Rows of lanes that lie next to each other are one long run. An absent tensor joins anything.
inline bool joins(const View& v, int64_t lanes) { return !v.data || v.row_stride == lanes; }

// Frames [begin, end) of segment `index` of `count`; boundaries lie on multiples of `multiple`.
struct Segment {
  int64_t begin, end;
};

inline Segment segment_at(int64_t index, int64_t count, int64_t frames, int64_t multiple) {
  const int64_t chunks = ceil_div(frames, multiple);
  return {chunks * index / count * multiple, min_of(chunks * (index + 1) / count * multiple, frames)};
}

// Uninitialised scratch memory of the whole call.
struct Workspace {
  void* data;
  explicit Workspace(int64_t bytes) : data(bytes ? aligned_alloc(64, size_t(ceil_div(bytes, 64) * 64)) : nullptr) {}
  ~Workspace() { free(data); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

// A state, gradient or decay for every lane of a block. In dense memory, a lane's imaginary part is `half` elements
// after its real part, and neighbouring lanes are `step` elements apart.
template <class S_, bool Complex>
struct Numbers {
  using S = S_;
  static constexpr bool complex = Complex;
  alignas(64) S re[kMaxBlock], im[Complex ? kMaxBlock : 1];

  TRECVIT_INLINE Number<S> get(int64_t j) const {
    if constexpr (Complex) return {re[j], im[j]};
    return {re[j], S(0)};
  }
  TRECVIT_INLINE void set(int64_t j, Number<S> value) {
    re[j] = value.re;
    if constexpr (Complex) im[j] = value.im;
  }
  void fill(int64_t width, S real) {
    for (int64_t j = 0; j < width; ++j) set(j, {real, S(0)});
  }
  void read(const S* from, int64_t half, int64_t step, int64_t width) {  // null reads as zero
    if (!from) return fill(width, S(0));
    for (int64_t j = 0; j < width; ++j) set(j, {from[j * step], Complex ? from[j * step + half] : S(0)});
  }
  void write(S* to, int64_t half, int64_t step, int64_t width) const {
    for (int64_t j = 0; j < width; ++j) {
      to[j * step] = re[j];
      if constexpr (Complex) to[j * step + half] = im[j];
    }
  }
};

// Calls walk(first, count) for panels of at most `most` neighbouring blocks, which are to go through time side by side.
// A frame of theirs is then a long run, which the processor fetches ahead by itself: of one block it would be a few
// lines of a page, and asking for these by instructions is slower.
template <class Walk>
void walk_panels(const Blocks& blocks, int64_t most, int threads, Walk walk) {
  const int64_t count = blocks.count(), longest = min_of(most, blocks.rows * blocks.per_run);
  const int64_t panels = min_of(ceil_div(ceil_div(count, longest), threads) * threads, count);  // as many for every thread
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t first = count * i / panels;
    walk(first, count * (i + 1) / panels - first);
  }
}

inline bool never_cuts(int64_t, int64_t) { return false; }

// Runs a recurrence over `count` blocks, each cut into `segments` in the order in which it is walked.
//   summarise(block, segment, state, product): walk the segment from zero (the first one: from its true start), leaving
//     its last state and the product of its decays;
//   replay(block, segment, start): walk it from `start` (null for the first one: its true start) and write the results;
//   cuts(block, segment): a reset in it keeps everything from before, NaN too, from its end.
// With one segment, replay is all that happens.
template <class Numbers, class Summarise, class Replay, class Cuts>
void walk_segments(int64_t count, int64_t segments, int threads, Summarise summarise, Replay replay, Cuts cuts) {
  using S = typename Numbers::S;
  const int64_t slots = segments - 1;
  Workspace workspace(2 * count * slots * int64_t(sizeof(Numbers)));
  Numbers* states = static_cast<Numbers*>(workspace.data);
  Numbers* products = states ? states + count * slots : nullptr;
#pragma omp parallel for schedule(static) num_threads(threads) if (slots > 0)
  for (int64_t task = 0; task < count * slots; ++task)
    summarise(task / slots, task % slots, states[task], products[task]);
#pragma omp parallel for schedule(static) num_threads(threads) if (slots > 1)
  for (int64_t block = 0; block < (slots > 1 ? count : 0); ++block) {
    for (int64_t at = block * slots + 1; at < (block + 1) * slots; ++at) {
      if (cuts(block, at - block * slots)) continue;
      for (int64_t j = 0; j < kMaxBlock; ++j)
        states[at].set(j, advance<S, Numbers::complex>(products[at].get(j), states[at - 1].get(j), states[at].get(j)));
    }
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < count * segments; ++task) {
    const int64_t block = task / segments, s = task % segments;
    replay(block, s, s ? states + block * slots + s - 1 : nullptr);
  }
}

// Adds `count` rows of `channels` sums in their order, whatever the number of threads; the second stage of a
// reduction over lanes. factor: one per channel, or null. A null `out` is not wanted.
template <class S>
void reduce_rows(const S* sums, int64_t count, int64_t channels, S* out, const double* factor, int threads) {
  if (!out) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < channels; first += kMinBlock) {
    const int64_t width = min_of(kMinBlock, channels - first);
    double total[kMinBlock] = {};  // there may be millions of rows
    for (int64_t row = 0; row < count; ++row) {
      TRECVIT_VECTORIZE
      for (int64_t j = 0; j < width; ++j) total[j] += sums[row * channels + first + j];
    }
    for (int64_t j = 0; j < width; ++j) out[first + j] = S(factor ? total[j] * factor[first + j] : total[j]);
  }
}

// Ask for the next frame's lines while this one is computed: time strides defeat the hardware's prefetcher.
template <class T>
inline __attribute__((always_inline)) void prefetch(const T* from, int64_t count) {
  const char* begin = reinterpret_cast<const char*>(from);
  for (int64_t offset = 0; offset < count * int64_t(sizeof(T)); offset += 64) __builtin_prefetch(begin + offset);
}

}  // namespace
}  // namespace trecvit
