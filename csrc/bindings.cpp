// The Python module trecvit_kernels._native: pointers as integers, sizes and element strides in; tensors are
// allocated and checked by the Python side (ops/<op>/native.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/dlpack.h"
#include "common/isa.h"
#include "common/memory.h"
#include "gated_lru/params.h"
#include "gelu/params.h"
#include "linear_scan/params.h"
#include "recurrent_mixer/params.h"
#include "rms_norm/params.h"

namespace py = pybind11;
using namespace trecvit;

// One table of kernels per instruction set and op, defined in csrc/<op>/cpu.cpp. KERNELS(op) is the active one.
#define TRECVIT_DECLARE_(isa)                                  \
  namespace trecvit::isa {                                     \
  extern const GatedLruKernels gated_lru_kernels;              \
  extern const GeluKernels gelu_kernels;                       \
  extern const LinearScanKernels linear_scan_kernels;          \
  extern const RecurrentMixerKernels recurrent_mixer_kernels;  \
  extern const RmsNormKernels rms_norm_kernels;                \
  }
TRECVIT_FOR_EACH_ISA(TRECVIT_DECLARE_)
#define TRECVIT_GATED_LRU_(isa) &trecvit::isa::gated_lru_kernels,
#define TRECVIT_GELU_(isa) &trecvit::isa::gelu_kernels,
#define TRECVIT_LINEAR_SCAN_(isa) &trecvit::isa::linear_scan_kernels,
#define TRECVIT_RECURRENT_MIXER_(isa) &trecvit::isa::recurrent_mixer_kernels,
#define TRECVIT_RMS_NORM_(isa) &trecvit::isa::rms_norm_kernels,

namespace {

const GatedLruKernels& gated_lru_kernels() {
  static const GatedLruKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_GATED_LRU_)};
  return *tables[int(active_isa())];
}

const GeluKernels& gelu_kernels() {
  static const GeluKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_GELU_)};
  return *tables[int(active_isa())];
}

const LinearScanKernels& linear_scan_kernels() {
  static const LinearScanKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_LINEAR_SCAN_)};
  return *tables[int(active_isa())];
}

const RecurrentMixerKernels& recurrent_mixer_kernels() {
  static const RecurrentMixerKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_RECURRENT_MIXER_)};
  return *tables[int(active_isa())];
}

const RmsNormKernels& rms_norm_kernels() {
  static const RmsNormKernels* const tables[] = {TRECVIT_FOR_EACH_ISA(TRECVIT_RMS_NORM_)};
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

void read(Arguments& in, GatedLruForward& p) {
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

void read(Arguments& in, GeluForward& p) { read_gelu(in, p); }
void read(Arguments& in, GeluBackward& p) { read_gelu(in, p); }

void read(Arguments& in, RmsNormForward& p) {
  p.dtype = DType(in.next<int>());
  p.rows = in.next<int64_t>();
  p.channels = in.next<int64_t>();
  p.eps = in.next<double>();
  p.threads = in.next<int>();
  p.x = in.next_pointer();
  p.scale = in.next_pointer();
}

void read(Arguments& in, LinearScanForward& p) {
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

void read(Arguments& in, CausalConvForward& p) {
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

void read_rest(Arguments& in, GatedLruForward& p) {
  p.y = in.next_view();
  p.h_last = in.next_pointer();
}

void read_rest(Arguments& in, GatedLruBackward& p) {
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

void read_rest(Arguments& in, GeluForward& p) { p.y = in.next_pointer(); }

void read_rest(Arguments& in, GeluBackward& p) {
  p.dy = in.next_pointer();
  p.dx = in.next_pointer();
}

void read_rest(Arguments& in, RmsNormForward& p) { p.y = in.next_pointer(); }

void read_rest(Arguments& in, RmsNormBackward& p) {
  p.dy = in.next_pointer();
  p.dx = in.next_pointer();
  p.dscale = in.next_pointer();
}

void read_rest(Arguments& in, LinearScanForward& p) {
  p.h = in.next_view();
  p.h_last = in.next_pointer();
}

void read_rest(Arguments& in, LinearScanBackward& p) {
  p.dh = in.next_view();
  p.da = in.next_view();
  p.db = in.next_view();
  p.dh_last = in.next_pointer();
  p.dh0 = in.next_pointer();
}

void read_rest(Arguments& in, CausalConvForward& p) { p.y = in.next_view(); }

void read_rest(Arguments& in, CausalConvBackward& p) {
  p.dy = in.next_view();
  p.du = in.next_view();
  p.dtail = in.next_view();
  p.dweight = in.next_pointer();
  p.dbias = in.next_pointer();
}

// A launcher of parameters P: reads them, then runs `kernel` (of the active instruction set) without the GIL.
template <class P, class Kernel>
auto launcher(Kernel kernel) {
  return [kernel](const py::args& args) {
    Arguments in(args);
    P p;
    read(in, p);
    read_rest(in, p);
    in.finish();
    const auto run = kernel();
    py::gil_scoped_release release;
    run(p);
  };
}

// A capsule that nobody takes over frees the tensor itself; torch.from_dlpack renames the one it takes.
py::capsule empty(std::vector<int64_t> shape, int type_code, int type_bits) {
  const auto free_unused = [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  };
  return py::capsule(Output::make(std::move(shape), type_code, type_bits), "dltensor", free_unused);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of trecvit_kernels.";
  m.def("isa", [] { return isa_name(active_isa()); },
        "Instruction set whose kernels run. ValueError or RuntimeError if TRECVIT_ISA names one that cannot.");
  m.def("compiled_isas", [] { return isa_names(false); }, "Instruction sets compiled in, lowest first.");
  m.def("supported_isas", [] { return isa_names(true); }, "Those of them that this machine can run.");
  m.attr("sanitizers") = TRECVIT_SANITIZERS;  // "" in a normal build
  m.def("empty", empty, "(shape, DLPack type code, bits) -> DLPack capsule of a tensor with undefined contents.");
  m.def("limit_kept_memory", limit_kept_memory, "Bytes of freed outputs to keep for later ones.");
  m.def("memory_use", [] {
    const MemoryUse use = memory_use();
    return py::make_tuple(use.used, use.kept);
  }, "Bytes in live outputs that `empty` made, and bytes kept for later ones.");
  // Launchers take their arguments in the order in which ops/<op>/native.py lists them.
  m.def("gated_lru_forward", launcher<GatedLruForward>([] { return gated_lru_kernels().forward; }));
  m.def("gated_lru_backward", launcher<GatedLruBackward>([] { return gated_lru_kernels().backward; }));
  m.def("gelu_forward", launcher<GeluForward>([] { return gelu_kernels().forward; }));
  m.def("gelu_backward", launcher<GeluBackward>([] { return gelu_kernels().backward; }));
  m.def("linear_scan_forward", launcher<LinearScanForward>([] { return linear_scan_kernels().forward; }));
  m.def("linear_scan_backward", launcher<LinearScanBackward>([] { return linear_scan_kernels().backward; }));
  m.def("causal_conv_forward", launcher<CausalConvForward>([] { return recurrent_mixer_kernels().conv_forward; }));
  m.def("causal_conv_backward", launcher<CausalConvBackward>([] { return recurrent_mixer_kernels().conv_backward; }));
  m.def("rms_norm_forward", launcher<RmsNormForward>([] { return rms_norm_kernels().forward; }));
  m.def("rms_norm_backward", launcher<RmsNormBackward>([] { return rms_norm_kernels().backward; }));
}
