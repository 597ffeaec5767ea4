// What the linear scan's GPU kernels share: numbers of neighbouring lanes, dense states.
#pragma once

#include "../common/scan.cuh"
#include "params.h"

namespace trecvit {
namespace {

template <class IO>
struct Element {
  static constexpr bool complex = false;
  using S = typename StateOf<IO>::type;
};
template <class T>
struct Element<ComplexOf<T>> {
  static constexpr bool complex = true;
  using S = T;
};

// V numbers in registers. Dense states interleave real and imaginary parts, as the tensors do.
template <class IO, int V>
struct Group {
  using E = Element<IO>;
  using S = typename E::S;
  static constexpr bool complex = E::complex;
  static constexpr int parts = complex ? 2 : 1;
  Number<S> at[V];

  TRECVIT_DEVICE void fill(S real) {
#pragma unroll
    for (int j = 0; j < V; ++j) at[j] = {real, S(0)};
  }
  TRECVIT_DEVICE void take_flat(const S (&flat)[V * parts]) {
#pragma unroll
    for (int j = 0; j < V; ++j) at[j] = {flat[j * parts], complex ? flat[j * parts + parts - 1] : S(0)};
  }
  TRECVIT_DEVICE void give_flat(S (&flat)[V * parts]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      flat[j * parts] = at[j].re;
      if constexpr (complex) flat[j * parts + 1] = at[j].im;
    }
  }
  // A slot of the tensors' elements.
  TRECVIT_DEVICE void read(const char* slot) {
    S flat[V * parts];
    if constexpr (complex) {
      IO raw[V];
      read_slot(raw, slot);
      memcpy(&flat, &raw, sizeof flat);
    } else {
      read_values<IO>(flat, slot);
    }
    take_flat(flat);
  }
  TRECVIT_DEVICE void write(IO* to, int count, bool whole) const {
    S flat[V * parts];
    give_flat(flat);
    if constexpr (complex) {
      IO raw[V];
      memcpy(&raw, &flat, sizeof raw);
      write_lanes(to, raw, count, whole);
    } else {
      write_values(to, flat, count, whole);
    }
  }
  TRECVIT_DEVICE void read_state(const S* from, int count, bool whole) {  // null reads as zero
    if (!from) return fill(S(0));
    S flat[V * parts];
    read_lanes(flat, from, count * parts, whole);
    take_flat(flat);
  }
  TRECVIT_DEVICE void write_state(S* to, int count, bool whole) const {
    if (!to) return;
    S flat[V * parts];
    give_flat(flat);
    write_lanes(to, flat, count * parts, whole);
  }
};

// a h + b
template <class IO, int V>
TRECVIT_DEVICE Group<IO, V> advanced(const Group<IO, V>& a, const Group<IO, V>& h, const Group<IO, V>& b) {
  Group<IO, V> next;
#pragma unroll
  for (int j = 0; j < V; ++j)
    next.at[j] = advance<typename Group<IO, V>::S, Group<IO, V>::complex>(a.at[j], h.at[j], b.at[j]);
  return next;
}
// h <- a h + b
template <class IO, int V>
TRECVIT_DEVICE void advance_all(Group<IO, V>& h, const Group<IO, V>& a, const Group<IO, V>& b) {
  h = advanced(a, h, b);
}
// g <- conj(a) g
template <class IO, int V>
TRECVIT_DEVICE void pull_back_all(Group<IO, V>& g, const Group<IO, V>& a) {
#pragma unroll
  for (int j = 0; j < V; ++j) g.at[j] = pull_back<typename Group<IO, V>::S, Group<IO, V>::complex>(a.at[j], g.at[j]);
}
template <class IO, int V>
TRECVIT_DEVICE void add_all(Group<IO, V>& to, const Group<IO, V>& other) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    to.at[j].re += other.at[j].re;
    if constexpr (Group<IO, V>::complex) to.at[j].im += other.at[j].im;
  }
}

// A tube's state in dense (batch, slots, rows, lanes) memory; null stays null.
template <class IO, int V>
TRECVIT_DEVICE typename Element<IO>::S* state_at(const LinearScanForward& p, const Place<V>& place, const void* states,
                                                 int64_t slot, int64_t slots) {
  using S = typename Element<IO>::S;
  if (!states) return nullptr;
  const int64_t at = ((place.batch * slots + slot) * p.rows + place.row) * p.lanes + place.first;
  return static_cast<S*>(const_cast<void*>(states)) + at * Group<IO, V>::parts;
}

inline bool is_complex(DType dtype) { return dtype == DType::kComplex64 || dtype == DType::kComplex128; }
inline int64_t number_bytes(DType dtype) { return state_bytes(dtype) * (is_complex(dtype) ? 2 : 1); }

// Rows that lie next to each other become one.
inline bool joins(const View& v, int64_t lanes) { return !v.data || v.row_stride == lanes; }
template <class P>
P joined(P p, bool joins_all) {
  if (!joins_all) return p;
  p.lanes *= p.rows;
  p.rows = 1;
  return p;
}

inline bool states_in_units(const LinearScanForward& p, const void* a, const void* b, const void* c, const void* d) {
  return p.lanes * number_bytes(p.dtype) % 16 == 0 && in_units(a, 16) && in_units(b, 16) && in_units(c, 16) &&
      in_units(d, 16);
}

template <class P, class Run>
const char* dispatch(const P& p, Run run) {
  switch (p.dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kBFloat16: return run(BFloat16{});
    case DType::kFloat16: return run(Float16{});
    case DType::kFloat64: return run(double{});
    case DType::kComplex64: return run(ComplexOf<float>{});
    case DType::kComplex128: return run(ComplexOf<double>{});
  }
  return "linear_scan: unknown dtype";
}

inline bool is_empty(const LinearScanForward& p) {
  return p.batch == 0 || p.rows == 0 || p.lanes == 0 || p.frames == 0;
}

}  // namespace
}  // namespace trecvit
