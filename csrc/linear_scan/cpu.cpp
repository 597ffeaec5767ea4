// Linear scan on the CPU: h_t = a_t h_{t-1} + b_t, a thread walking a block of lanes through time.
//
// The backward pass recomputes the states of `frames_per_state` frames at a time; its adjoint recurrence
// G_t = dh_t + conj(a_{t+1}) G_{t+1} gives db_t = G_t and da_t = conj(h_{t-1}) G_t.
#include "../common/blocks.h"
#include "../common/isa.h"
#include "params.h"

namespace trecvit {
namespace {

constexpr int64_t kMaxFramesPerState = 16;
constexpr int64_t kPanel = 16, kPanelBack = 4;  // blocks side by side; their states stay in the second cache

template <class IO>
struct Element {
  static constexpr bool complex = false;
  using S = typename StateOf<IO>::type;
  static TRECVIT_INLINE Number<S> get(const IO& from) { return {load(from), S(0)}; }
  static TRECVIT_INLINE void set(IO& to, Number<S> value) { store(to, value.re); }
};

template <class T>
struct Element<ComplexOf<T>> {
  static constexpr bool complex = true;
  using S = T;
  static TRECVIT_INLINE Number<S> get(const ComplexOf<T>& from) { return {from.re, from.im}; }
  static TRECVIT_INLINE void set(ComplexOf<T>& to, Number<S> value) { to = {value.re, value.im}; }
};

template <class IO_>
struct Scan {
  using IO = IO_;
  using E = Element<IO>;
  using S = typename E::S;
  static constexpr bool complex = E::complex;
  static constexpr int64_t parts = complex ? 2 : 1;
  using Vector = Numbers<S, complex>;

  static IO* row(const View& v, const Block& block, int64_t t) {
    return static_cast<IO*>(v.data) + block.batch * v.batch_stride + t * v.frame_stride + block.row * v.row_stride +
           block.first;
  }
  // This block in dense (batch, slots, rows * lanes) states; complex states are interleaved like the tensors.
  static S* state(const LinearScanForward& p, const Block& block, const void* states, int64_t slot, int64_t slots) {
    if (!states) return nullptr;
    const int64_t at = (block.batch * slots + slot) * p.rows * p.lanes + block.lane;
    return static_cast<S*>(const_cast<void*>(states)) + at * parts;
  }
  static void read(Vector& to, const S* from, int64_t width) { to.read(from, 1, parts, width); }
  static void write(const Vector& from, S* to, int64_t width) { from.write(to, 1, parts, width); }

  // Blocks [first, first + count) through a segment, from the states `from` (null: from the start of time).
  static void walk(const LinearScanForward& p, const Blocks& blocks, int64_t first, int64_t count, Segment segment,
                   const Vector* from) {
    const int64_t saved = (p.frames - 1) / p.frames_per_state;
    const Workspace memory(count * int64_t(sizeof(Vector)));
    Vector* const states = static_cast<Vector*>(memory.data);
    for (int64_t k = 0; k < count; ++k) {
      const Block block = blocks.at(first + k);
      if (from) {
        states[k] = from[k];
      } else {
        read(states[k], state(p, block, p.h0, 0, 1), block.width);
      }
    }
    for (int64_t t = segment.begin; t < segment.end; ++t) {
      const bool save = p.states && t > 0 && t % p.frames_per_state == 0;
      for (int64_t k = 0; k < count; ++k) {
        const Block block = blocks.at(first + k);
        Vector& h = states[k];
        if (save) write(h, state(p, block, p.states, t / p.frames_per_state - 1, saved), block.width);
        const IO *a = row(p.a, block, t), *b = row(p.b, block, t);
        IO* out = row(p.h, block, t);
        TRECVIT_VECTORIZE
        for (int64_t j = 0; j < block.width; ++j) {
          const Number<S> next = advance<S, complex>(E::get(a[j]), h.get(j), E::get(b[j]));
          h.set(j, next);
          E::set(out[j], next);
        }
      }
    }
    if (segment.end < p.frames) return;
    for (int64_t k = 0; k < count; ++k) {
      const Block block = blocks.at(first + k);
      write(states[k], state(p, block, p.h_last, 0, 1), block.width);
    }
  }

  static void forward(const LinearScanForward& p, const Blocks& blocks) {
    if (p.segments == 1) {
      walk_panels(blocks, kPanel, p.threads,
                  [&](int64_t first, int64_t count) { walk(p, blocks, first, count, {0, p.frames}, nullptr); });
      return;
    }
    const auto summarise = [&](int64_t index, int64_t s, Vector& h, Vector& product) {
      const Block block = blocks.at(index);
      const Segment segment = segment_at(s, p.segments, p.frames, p.frames_per_state);
      read(h, s == 0 ? state(p, block, p.h0, 0, 1) : nullptr, block.width);
      product.fill(block.width, S(1));
      for (int64_t t = segment.begin; t < segment.end; ++t) {
        const IO *a = row(p.a, block, t), *b = row(p.b, block, t);
        TRECVIT_VECTORIZE
        for (int64_t j = 0; j < block.width; ++j) {
          const Number<S> a_t = E::get(a[j]);
          h.set(j, advance<S, complex>(a_t, h.get(j), E::get(b[j])));
          product.set(j, advance<S, complex>(a_t, product.get(j), {S(0), S(0)}));
        }
      }
    };
    const auto replay = [&](int64_t index, int64_t s, const Vector* from) {
      walk(p, blocks, index, 1, segment_at(s, p.segments, p.frames, p.frames_per_state), from);
    };
    walk_segments<Vector>(blocks.count(), p.segments, p.threads, summarise, replay, never_cuts);
  }

  // A block on its walk backwards: the carry conj(a_{t+1}) G_{t+1}, and h_{t-1} for every frame of the chunk it is in.
  struct Walker {
    Vector carry, before[kMaxFramesPerState];
  };

  static void recompute(const LinearScanBackward& p, const Block& block, int64_t t, const Vector& h, Vector& after) {
    const IO *a = row(p.a, block, t), *b = row(p.b, block, t);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < block.width; ++j)
      after.set(j, advance<S, complex>(E::get(a[j]), h.get(j), E::get(b[j])));
  }

  static void step_back(const LinearScanBackward& p, const Block& block, int64_t t, const Vector& h_before,
                        Vector& carry) {
    const IO *a = row(p.a, block, t), *dh = row(p.dh, block, t);
    IO *da = row(p.da, block, t), *db = row(p.db, block, t);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < block.width; ++j) {
      const Number<S> later = carry.get(j), here = E::get(dh[j]);
      const Number<S> G = {here.re + later.re, here.im + later.im};
      E::set(db[j], G);
      E::set(da[j], pull_back<S, complex>(h_before.get(j), G));
      carry.set(j, pull_back<S, complex>(E::get(a[j]), G));
    }
  }

  // Blocks [first, first + count) backwards through a segment, from the carries `from` (null: from the end of time).
  static void walk_back(const LinearScanBackward& p, const Blocks& blocks, int64_t first, int64_t count,
                        Segment segment, const Vector* from) {
    const int64_t step = p.frames_per_state, saved = (p.frames - 1) / step;
    const Workspace memory(count * int64_t(sizeof(Walker)));
    Walker* const walkers = static_cast<Walker*>(memory.data);
    for (int64_t k = 0; k < count; ++k) {
      const Block block = blocks.at(first + k);
      if (from) {
        walkers[k].carry = from[k];
      } else {
        read(walkers[k].carry, state(p, block, p.dh_last, 0, 1), block.width);
      }
    }
    for (int64_t begin = (segment.end - 1) / step * step; begin >= segment.begin; begin -= step) {
      const int64_t end = min_of(begin + step, segment.end);
      for (int64_t k = 0; k < count; ++k) {
        const Block block = blocks.at(first + k);
        read(walkers[k].before[0],
             begin == 0 ? state(p, block, p.h0, 0, 1) : state(p, block, p.states, begin / step - 1, saved),
             block.width);
      }
      for (int64_t t = begin; t + 1 < end; ++t)
        for (int64_t k = 0; k < count; ++k)
          recompute(p, blocks.at(first + k), t, walkers[k].before[t - begin], walkers[k].before[t - begin + 1]);
      for (int64_t t = end - 1; t >= begin; --t)
        for (int64_t k = 0; k < count; ++k)
          step_back(p, blocks.at(first + k), t, walkers[k].before[t - begin], walkers[k].carry);
    }
    if (segment.begin > 0) return;
    for (int64_t k = 0; k < count; ++k) {
      const Block block = blocks.at(first + k);
      write(walkers[k].carry, state(p, block, p.dh0, 0, 1), block.width);
    }
  }

  static void backward(const LinearScanBackward& p, const Blocks& blocks) {
    if (p.segments == 1) {
      walk_panels(blocks, kPanelBack, p.threads,
                  [&](int64_t first, int64_t count) { walk_back(p, blocks, first, count, {0, p.frames}, nullptr); });
      return;
    }
    const int64_t step = p.frames_per_state;
    // Time is walked backwards: the first segment walked is the last one in time.
    const auto segment_of = [&](int64_t s) { return segment_at(p.segments - 1 - s, p.segments, p.frames, step); };
    const auto summarise = [&](int64_t index, int64_t s, Vector& carry, Vector& product) {
      const Block block = blocks.at(index);
      const Segment segment = segment_of(s);
      read(carry, s == 0 ? state(p, block, p.dh_last, 0, 1) : nullptr, block.width);
      product.fill(block.width, S(1));
      for (int64_t t = segment.end - 1; t >= segment.begin; --t) {
        const IO *a = row(p.a, block, t), *dh = row(p.dh, block, t);
        TRECVIT_VECTORIZE
        for (int64_t j = 0; j < block.width; ++j) {
          const Number<S> a_t = E::get(a[j]);
          const Number<S> later = carry.get(j), here = E::get(dh[j]);
          carry.set(j, pull_back<S, complex>(a_t, {here.re + later.re, here.im + later.im}));
          product.set(j, pull_back<S, complex>(a_t, product.get(j)));
        }
      }
    };
    const auto replay = [&](int64_t index, int64_t s, const Vector* from) {
      walk_back(p, blocks, index, 1, segment_of(s), from);
    };
    walk_segments<Vector>(blocks.count(), p.segments, p.threads, summarise, replay, never_cuts);
  }

  static void run(const LinearScanForward& p) {
    forward(p, blocks_of(p, joins(p.a, p.lanes) && joins(p.b, p.lanes) && joins(p.h, p.lanes)));
  }
  static void run(const LinearScanBackward& p) {
    backward(p, blocks_of(p, joins(p.a, p.lanes) && joins(p.b, p.lanes) && joins(p.dh, p.lanes) &&
                                 joins(p.da, p.lanes) && joins(p.db, p.lanes)));
  }
  static Blocks blocks_of(const LinearScanForward& p, bool join) {
    return Blocks(p.batch, join ? 1 : p.rows, join ? p.rows * p.lanes : p.lanes, p.threads);
  }
};

template <class P>
void dispatch(const P& p) {
  if (p.batch == 0 || p.rows == 0 || p.lanes == 0) return;
  switch (p.dtype) {
    case DType::kFloat32: return Scan<float>::run(p);
    case DType::kBFloat16: return Scan<BFloat16>::run(p);
    case DType::kFloat16: return Scan<Float16>::run(p);
    case DType::kFloat64: return Scan<double>::run(p);
    case DType::kComplex64: return Scan<ComplexOf<float>>::run(p);
    case DType::kComplex128: return Scan<ComplexOf<double>>::run(p);
  }
}

}  // namespace

namespace TRECVIT_ISA {
extern const LinearScanKernels linear_scan_kernels;
const LinearScanKernels linear_scan_kernels = {dispatch<LinearScanForward>, dispatch<LinearScanBackward>};
}  // namespace TRECVIT_ISA
}  // namespace trecvit
