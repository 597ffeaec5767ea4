// How the launchers' arguments come from Python: one after the other, in the order in which ops/<op>/ lists them.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "../gated_lru/params.h"
#include "../gelu/params.h"
#include "../linear_scan/params.h"
#include "../recurrent_mixer/params.h"
#include "../residual_norm/params.h"
#include "../rms_norm/params.h"
#include "../spatial_attention/params.h"

namespace trecvit {

namespace py = pybind11;

inline void* pointer(const py::handle& address) { return reinterpret_cast<void*>(address.cast<uintptr_t>()); }

// (address, batch stride, frame stride, row stride), or None.
inline View view(const py::handle& v) {
  if (v.is_none()) return {};
  const auto t = py::reinterpret_borrow<py::tuple>(v);
  return {pointer(t[0]), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

// Reads the arguments of a launcher one after the other.
class Arguments {
 public:
  Arguments(const py::args& args, size_t first) : args_(args), at_(first) {}
  View next_view() { return view(args_[at_++]); }
  void* next_pointer() { return pointer(args_[at_++]); }
  template <class T>
  T next() {
    return args_[at_++].cast<T>();
  }
  void finish() const {
    if (at_ != args_.size()) throw std::invalid_argument("a launcher got a wrong number of arguments");
  }

 private:
  const py::args& args_;
  size_t at_;
};

inline void read(Arguments& in, GatedLruForward& p) {
  p.dtype = DType(in.next<int>());
  p.complex = in.next<bool>();
  p.convex = in.next<bool>();
  p.batch = in.next<int64_t>();
  p.frames = in.next<int64_t>();
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.frames_per_state = in.next<int64_t>();
  p.segments = in.next<int64_t>();
  p.threads = in.next<int>();
  p.x = in.next_view();
  p.gate_x = in.next_view();
  p.gate_a = in.next_view();
  p.v = in.next_view();
  p.a_param = in.next_pointer();
  p.a_imag = in.next_pointer();
  p.gate_x_bias = in.next_pointer();
  p.gate_a_bias = in.next_pointer();
  p.h0 = in.next_pointer();
  p.reset = static_cast<const uint8_t*>(in.next_pointer());
  p.starts = in.next<bool>();
  p.states = in.next_pointer();
}

template <class P>
void read_gelu(Arguments& in, P& p) {
  p.dtype = DType(in.next<int>());
  p.count = in.next<int64_t>();
  p.threads = in.next<int>();
  p.x = in.next_pointer();
}

inline void read(Arguments& in, GeluForward& p) { read_gelu(in, p); }
inline void read(Arguments& in, GeluBackward& p) { read_gelu(in, p); }

inline void read(Arguments& in, RmsNormForward& p) {
  p.dtype = DType(in.next<int>());
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.eps = in.next<double>();
  p.threads = in.next<int>();
  p.x = in.next_pointer();
  p.scale = in.next_pointer();
}

inline void read(Arguments& in, LinearScanForward& p) {
  p.dtype = DType(in.next<int>());
  p.batch = in.next<int64_t>();
  p.frames = in.next<int64_t>();
  p.rows = in.next<int64_t>();
  p.lanes = in.next<int64_t>();
  p.frames_per_state = in.next<int64_t>();
  p.segments = in.next<int64_t>();
  p.threads = in.next<int>();
  p.a = in.next_view();
  p.b = in.next_view();
  p.h0 = in.next_pointer();
  p.states = in.next_pointer();
}

inline void read(Arguments& in, CausalConvForward& p) {
  p.dtype = DType(in.next<int>());
  p.batch = in.next<int64_t>();
  p.frames = in.next<int64_t>();
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.taps = in.next<int64_t>();
  p.threads = in.next<int>();
  p.u = in.next_view();
  p.tail = in.next_view();
  p.weight = in.next_pointer();
  p.bias = in.next_pointer();
  p.reset = static_cast<const uint8_t*>(in.next_pointer());
}

inline void read(Arguments& in, MixerStep& p) {
  p.dtype = DType(in.next<int>());
  p.complex = in.next<bool>();
  p.batch = in.next<int64_t>();
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.taps = in.next<int64_t>();
  p.heads = in.next<int64_t>();
  p.u = in.next_view();
  p.v = in.next_view();
  p.tail = in.next_view();
  p.narrow = in.next<bool>();
  p.conv_weight = in.next_pointer();
  p.conv_bias = in.next_pointer();
  p.gate_x_weight = in.next_pointer();
  p.gate_x_bias = in.next_pointer();
  p.gate_a_weight = in.next_pointer();
  p.gate_a_bias = in.next_pointer();
  p.a_param = in.next_pointer();
  p.a_imag = in.next_pointer();
  p.h0 = in.next_pointer();
  p.reset = static_cast<const uint8_t*>(in.next_pointer());
  p.starts = in.next<bool>();
}

inline void read(Arguments& in, ResidualNorm& p) {
  p.dtype = DType(in.next<int>());
  p.parameter_dtype = DType(in.next<int>());
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.centred = in.next<bool>();
  p.eps = in.next<double>();
  p.x = in.next_pointer();
  p.branch = in.next_pointer();
  p.weight = in.next_pointer();
  p.bias = in.next_pointer();
  p.sum = in.next_pointer();
  p.y = in.next_pointer();
}

inline void read(Arguments& in, SpatialAttentionForward& p) {
  p.dtype = DType(in.next<int>());
  p.batch = in.next<int64_t>();
  p.frames = in.next<int64_t>();
  p.tokens = in.next<int64_t>();
  p.heads = in.next<int64_t>();
  p.head_dim = in.next<int64_t>();
  p.scale = in.next<double>();
  p.qkv = in.next_view();
  p.out = in.next_pointer();
  p.lse = in.next_pointer();
}

inline void read_rest(Arguments& in, GatedLruForward& p) {
  p.y = in.next_view();
  p.h_last = in.next_pointer();
}

inline void read_rest(Arguments& in, GatedLruBackward& p) {
  p.dy = in.next_view();
  p.dx = in.next_view();
  p.dgate_x = in.next_view();
  p.dgate_a = in.next_view();
  p.dv = in.next_view();
  p.dh_last = in.next_pointer();
  p.dh0 = in.next_pointer();
  p.da_param = in.next_pointer();
  p.da_imag = in.next_pointer();
  p.dgate_x_bias = in.next_pointer();
  p.dgate_a_bias = in.next_pointer();
}

inline void read_rest(Arguments& in, GeluForward& p) { p.y = in.next_pointer(); }

inline void read_rest(Arguments& in, GeluBackward& p) {
  p.dy = in.next_pointer();
  p.dx = in.next_pointer();
}

inline void read_rest(Arguments& in, RmsNormForward& p) { p.y = in.next_pointer(); }

inline void read_rest(Arguments& in, RmsNormBackward& p) {
  p.dy = in.next_pointer();
  p.dx = in.next_pointer();
  p.dscale = in.next_pointer();
}

inline void read_rest(Arguments& in, LinearScanForward& p) {
  p.h = in.next_view();
  p.h_last = in.next_pointer();
}

inline void read_rest(Arguments& in, LinearScanBackward& p) {
  p.dh = in.next_view();
  p.da = in.next_view();
  p.db = in.next_view();
  p.dh_last = in.next_pointer();
  p.dh0 = in.next_pointer();
}

inline void read_rest(Arguments& in, CausalConvForward& p) { p.y = in.next_view(); }

inline void read_rest(Arguments& in, MixerStep& p) {
  p.z = in.next_view();
  p.h_last = in.next_pointer();
  p.new_tail = in.next_view();
}

inline void read_rest(Arguments&, SpatialAttentionForward&) {}

inline void read_rest(Arguments&, ResidualNorm&) {}

inline void read_rest(Arguments& in, SpatialAttentionBackward& p) {
  p.dout = in.next_view();
  p.dqkv = in.next_pointer();
}

inline void read_rest(Arguments& in, CausalConvBackward& p) {
  p.dy = in.next_view();
  p.du = in.next_view();
  p.dtail = in.next_view();
  p.dweight = in.next_pointer();
  p.dbias = in.next_pointer();
}

// All arguments of a launcher, from number `first` on.
template <class P>
P parameters(const py::args& args, size_t first = 0) {
  Arguments in(args, first);
  P p;
  read(in, p);
  read_rest(in, p);
  in.finish();
  return p;
}

}  // namespace trecvit
