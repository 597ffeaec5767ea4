// The Python module trecvit_kernels._native: pointers as integers, sizes and element strides in; nothing allocated.
#include <pybind11/pybind11.h>

#include "common/isa.h"

namespace py = pybind11;

namespace {

py::tuple isa_names(bool only_supported) {
  py::list names;
  for (int i = 0; i < trecvit::kIsaCount; ++i) {
    const auto isa = trecvit::Isa(i);
    if (!only_supported || trecvit::cpu_supports(isa)) names.append(trecvit::isa_name(isa));
  }
  return py::tuple(names);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of trecvit_kernels.";
  m.def("isa", [] { return trecvit::isa_name(trecvit::active_isa()); },
        "Instruction set whose kernels run. ValueError or RuntimeError if TRECVIT_ISA names one that cannot.");
  m.def("compiled_isas", [] { return isa_names(false); }, "Instruction sets compiled in, lowest first.");
  m.def("supported_isas", [] { return isa_names(true); }, "Those of them that this machine can run.");
  m.attr("sanitizers") = TRECVIT_SANITIZERS;  // "" in a normal build
}
