// How the CPU kernels of the recurrent ops divide their work: blocks of neighbouring lanes, walked over time by one
// thread each, and segments of time where there are too few blocks.
#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace trecvit {
namespace {

constexpr int64_t kMaxBlock = 128;  // lanes per block; bounds the scratch on the stack (a few rows a lane array)
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

// Frames [begin, end) of segment `index` of `count`; boundaries lie on multiples of `multiple`.
struct Segment {
  int64_t begin, end;
};

inline Segment segment_at(int64_t index, int64_t count, int64_t frames, int64_t multiple) {
  const int64_t chunks = ceil_div(frames, multiple);
  return {chunks * index / count * multiple, min_of(chunks * (index + 1) / count * multiple, frames)};
}

// Zeroed scratch memory of the whole call.
struct Workspace {
  void* data;
  explicit Workspace(int64_t bytes) : data(bytes ? calloc(size_t(bytes), 1) : nullptr) {}
  ~Workspace() { free(data); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

// Ask for the next frame's lines while this one is computed: time strides defeat the hardware's prefetcher.
template <class T>
inline __attribute__((always_inline)) void prefetch(const T* from, int64_t count) {
  const char* begin = reinterpret_cast<const char*>(from);
  for (int64_t offset = 0; offset < count * int64_t(sizeof(T)); offset += 64) __builtin_prefetch(begin + offset);
}

}  // namespace
}  // namespace trecvit
