// The Python module trecvit_kernels._native: pointers as integers, sizes and element strides in; tensors are
// allocated and checked by the Python side (ops/<op>/native.py).
#include <pybind11/pybind11.h>

#include "common/isa.h"
#include "gated_lru/params.h"

namespace py = pybind11;
using namespace trecvit;

// One table of kernels per instruction set and op, defined in csrc/<op>/cpu.cpp.
#define TRECVIT_DECLARE_(isa)                      \
  namespace trecvit::isa {                         \
  extern const GatedLruKernels gated_lru_kernels;  \
  }
TRECVIT_FOR_EACH_ISA(TRECVIT_DECLARE_)

#define TRECVIT_GATED_LRU_(isa) &trecvit::isa::gated_lru_kernels,

namespace {

const GatedLruKernels& gated_lru_kernels() {
  static const GatedLruKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_GATED_LRU_)};
  return *tables[int(active_isa())];
}

py::tuple isa_names(bool only_supported) {
  py::list names;
  for (int i = 0; i < kIsaCount; ++i) {
    const auto isa = Isa(i);
    if (!only_supported || cpu_supports(isa)) names.append(isa_name(isa));
  }
  return py::tuple(names);
}

void* pointer(const py::handle& address) { return reinterpret_cast<void*>(address.cast<uintptr_t>()); }

// (address, batch stride, frame stride, row stride), or None.
View view(const py::handle& v) {
  if (v.is_none()) return {};
  const auto t = py::reinterpret_borrow<py::tuple>(v);
  return {pointer(t[0]), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

// Reads the arguments of a launcher one after the other, in the order in which native.py lists them.
class Arguments {
 public:
  explicit Arguments(const py::args& args) : args_(args) {}
  View next_view() { return view(args_[at_++]); }
  void* next_pointer() { return pointer(args_[at_++]); }
  template <class T>
  T next() {
    return args_[at_++].cast<T>();
  }
  void finish() const {
    if (at_ != args_.size()) throw std::invalid_argument("_native: wrong number of arguments");
  }

 private:
  const py::args& args_;
  size_t at_ = 0;
};

void read_gated_lru(Arguments& in, GatedLruForward& p) {
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

void gated_lru_forward(const py::args& args) {
  Arguments in(args);
  GatedLruForward p;
  read_gated_lru(in, p);
  p.y = in.next_view();
  p.h_last = in.next_pointer();
  in.finish();
  const auto run = gated_lru_kernels().forward;
  py::gil_scoped_release release;
  run(p);
}

void gated_lru_backward(const py::args& args) {
  Arguments in(args);
  GatedLruBackward p;
  read_gated_lru(in, p);
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
  in.finish();
  const auto run = gated_lru_kernels().backward;
  py::gil_scoped_release release;
  run(p);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of trecvit_kernels.";
  m.def("isa", [] { return isa_name(active_isa()); },
        "Instruction set whose kernels run. ValueError or RuntimeError if TRECVIT_ISA names one that cannot.");
  m.def("compiled_isas", [] { return isa_names(false); }, "Instruction sets compiled in, lowest first.");
  m.def("supported_isas", [] { return isa_names(true); }, "Those of them that this machine can run.");
  m.attr("sanitizers") = TRECVIT_SANITIZERS;  // "" in a normal build
  m.def("gated_lru_forward", gated_lru_forward, "Arguments in the order of ops/gated_lru/native.py.");
  m.def("gated_lru_backward", gated_lru_backward, "Arguments in the order of ops/gated_lru/native.py.");
}
