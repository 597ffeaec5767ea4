// What the gated LRU's GPU kernels share: a group's parameters, resets, gates, memory for the carries of segments.
#pragma once

#include "../common/scan.cuh"
#include "params.h"
#include "step.h"

namespace trecvit {
namespace {

// Parameters of V channels. Phases and the mixer's biases wait in slots of shared memory: registers are short.
template <class S, bool Complex, int V>
struct Channels {
  static constexpr int kUnit = 16 / int(sizeof(S)), kSlots = (V + kUnit - 1) / kUnit;  // of one kind
  S decay[V];
  char* slots;  // theta, bias of gate_a, bias of gate_x; unused ones left out
  int pitch;
  bool biased;

  TRECVIT_DEVICE Channels(const GatedLruForward& p, int64_t first, int count, char* slots_, int pitch_)
      : slots(slots_), pitch(pitch_), biased(p.gate_x_bias) {
    read_lanes(decay, static_cast<const S*>(p.a_param) + first, count, false);
#pragma unroll
    for (int j = 0; j < V; ++j) decay[j] = decay_per_gate(decay[j]);
    if constexpr (Complex) keep(p.a_imag, first, count, kTheta);
    if (biased) {
      keep(p.gate_a_bias, first, count, kGateA);
      keep(p.gate_x_bias, first, count, kGateX);
    }
  }
  // Shared memory for so many threads.
  static int64_t shared_bytes(const GatedLruForward& p, int64_t threads) {
    return ((Complex ? 1 : 0) + (p.gate_x_bias ? 2 : 0)) * kSlots * 16 * threads;
  }

  static constexpr int kTheta = 0, kGateA = Complex ? 1 : 0, kGateX = kGateA + 1;  // kinds

  // to += a kept parameter
  TRECVIT_DEVICE void add(S (&to)[V], int kind) const {
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      S kept[kUnit];
      read_slot(kept, slots + (kind * kSlots + k) * pitch);
#pragma unroll
      for (int j = 0; j < kUnit && k * kUnit + j < V; ++j) to[k * kUnit + j] += kept[j];
    }
  }
  // theta, zeros if real
  TRECVIT_DEVICE void phases(S (&to)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = S(0);
    if constexpr (Complex) add(to, kTheta);
  }

 private:
  TRECVIT_DEVICE void keep(const void* parameter, int64_t first, int count, int kind) {
    const S* from = static_cast<const S*>(parameter) + first;
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      S kept[kUnit];
#pragma unroll
      for (int j = 0; j < kUnit; ++j) kept[j] = k * kUnit + j < count ? from[k * kUnit + j] : S(0);
      write_slot(slots + (kind * kSlots + k) * pitch, kept);
    }
  }
};

// V gates from their pre-activations in a slot. bias: the kind of theirs in `channels`.
template <class IO, class S, bool Complex, int V>
TRECVIT_DEVICE void open_gates(S (&to)[V], const char* slot, const Channels<S, Complex, V>& channels, int bias) {
  read_values<IO>(to, slot);
  if (channels.biased) channels.add(to, bias);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = sigmoid(to[j]);
}

// V numbers from one slot, or from two, `pitch` bytes apart.
template <class IO, class S, bool Complex, int V>
TRECVIT_DEVICE void read_numbers(State<S, Complex, V>& to, const char* slot, int pitch) {
  read_values<IO>(to.re, slot);
  if constexpr (Complex) read_values<IO>(to.im, slot + pitch);
}

template <class IO, class S, bool Complex, int V>
TRECVIT_DEVICE void write_numbers(IO* to, const State<S, Complex, V>& from, int64_t half, int count, bool whole) {
  write_values(to, from.re, count, whole);
  if constexpr (Complex) write_values(to + half, from.im, count, whole);
}

TRECVIT_DEVICE bool resets_at(const GatedLruForward& p, int64_t batch, int64_t t) {
  return p.reset ? p.reset[batch * p.frames + t] != 0 : (p.starts && t == 0);
}

// Bit k: frame begin + k resets.
TRECVIT_DEVICE uint32_t resets_of(const GatedLruForward& p, int64_t batch, int64_t begin, int frames) {
  uint32_t bits = p.starts && begin == 0;
  if (p.reset) {
    bits = 0;
    for (int k = 0; k < frames; ++k) bits |= uint32_t(resets_at(p, batch, begin + k)) << k;
  }
  return bits;
}

// A tube's state in dense (batch, slots, rows, lanes) memory; null stays null.
template <class S, bool Complex, int V>
TRECVIT_DEVICE S* state_at(const GatedLruForward& p, const Place<V>& place, const void* states, int64_t slot,
                           int64_t slots) {
  if (!states) return nullptr;
  const int64_t width = Complex ? 2 * p.channels : p.channels;
  const int64_t at = ((place.batch * slots + slot) * p.rows + place.row) * width + place.first;
  return static_cast<S*>(const_cast<void*>(states)) + at;
}

// Ends of segments and products of their decays, one dense state per segment but the last one walked.
struct Carries {
  char *ends = nullptr, *products = nullptr;
  int64_t bytes = 0;  // of one state

  Carries() = default;
  Carries(const GatedLruForward& p, const Walk& walk, void* workspace)
      : bytes(walk.tubes() * p.channels * (p.complex ? 2 : 1) * state_bytes(p.dtype)) {
    ends = static_cast<char*>(workspace);
    products = ends + (walk.segments - 1) * bytes;
  }
  static int64_t workspace(const GatedLruForward& p, const Walk& walk) {
    const Carries c(p, walk, nullptr);
    return ceil_div(2 * (walk.segments - 1) * c.bytes, 16) * 16;
  }
  TRECVIT_INLINE const void* before(int64_t segment) const { return ends + (segment - 1) * bytes; }
};

template <class S, bool Complex>
void launch_carries(DeviceScope& scope, const GatedLruForward& p, const Walk& walk, const Carries& carries) {
  const int64_t lanes = walk.tubes() * p.channels;
  if (walk.segments > 2)
    scope.launch("gated_lru carry_kernel", carry_kernel<S, Complex>, ceil_div(lanes, kCarryThreads), kCarryThreads, 0,
                 reinterpret_cast<S*>(carries.ends), reinterpret_cast<const S*>(carries.products), walk.segments - 1,
                 lanes, p.channels, int64_t(1), p.channels, true);
}

// Whether a dense state of the tensor's lanes comes in units of 16 bytes (of V channels' values).
inline bool states_in_units(const GatedLruForward& p, const void* a, const void* b, const void* c) {
  return p.channels * state_bytes(p.dtype) % 16 == 0 && in_units(a, 16) && in_units(b, 16) && in_units(c, 16);
}

// Calls run(IO{}) for the storage type that the parameters name.
template <class P, class Run>
const char* dispatch(const P& p, Run run) {
  switch (p.dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kBFloat16: return run(BFloat16{});
    case DType::kFloat16: return run(Float16{});
    case DType::kFloat64: return run(double{});
    default: return "gated_lru: complex storage belongs to linear_scan";
  }
}

inline bool is_empty(const GatedLruForward& p) {
  return p.batch == 0 || p.rows == 0 || p.channels == 0 || p.frames == 0;
}

}  // namespace
}  // namespace trecvit
