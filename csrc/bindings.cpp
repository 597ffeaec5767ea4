// The Python module trecvit_kernels._native: pointers as integers, sizes and element strides in; tensors are
// allocated and checked by the Python side (ops/<op>/_compiled.py or native.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/cuda.h"
#include "common/dlpack.h"
#include "common/isa.h"
#include "common/memory.h"

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

// A launcher of parameters P: reads them, then runs `kernel` (of the active instruction set) without the GIL.
template <class P, class Kernel>
auto launcher(Kernel kernel) {
  return [kernel](const py::args& args) {
    const P p = parameters<P>(args);
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
  m.doc() = "Compiled kernels of trecvit_kernels: the CPU's here, those for NVIDIA GPUs in `cuda`.";
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
  // Launchers take their arguments in the order in which ops/<op>/_compiled.py or native.py lists them.
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
#if defined(TRECVIT_HAS_CUDA)
  auto cuda = m.def_submodule("cuda", "CUDA kernels.");
  bind_cuda(cuda);
  cuda.attr("architectures") = TRECVIT_CUDA_ARCHITECTURES;
  cuda.attr("toolkit") = TRECVIT_CUDA_TOOLKIT;
#endif
}
