// The Python module _simt: the CUDA kernels as functions on CPU memory (`cuda`, as _native.cuda has them), the order of
// threads, and kernels for the harness' own tests.
#include <pybind11/stl.h>

#include <optional>

#include "../../csrc/bindings/cuda.h"
#include "../../csrc/common/launch.h"
#include "faults.h"
#include "machine.h"

namespace trecvit {

void faults::define(pybind11::module_& m, const Fault& fault) {
  m.def(fault.name, [fault](bool correct) -> std::optional<std::string> {
    alignas(16) static float in[4096], out[4096];
    alignas(16) static uint32_t flags[64];
    for (int i = 0; i < 4096; ++i) in[i] = 1, out[i] = 0;
    for (uint32_t& flag : flags) flag = 0;
    DeviceScope scope{CudaLaunch{}};
    scope.launch(fault.name, fault.kernel, fault.blocks, fault.threads, fault.shared_bytes,
                 Plan{correct, in, out, flags});
    if (scope.error()) return scope.error();
    return std::nullopt;
  });
}

namespace {

pybind11::dict statistics() {
  const simt::Statistics& s = simt::machine.statistics;
  pybind11::dict d;
  d["launches"] = s.launches;
  d["blocks"] = s.blocks;
  d["threads"] = s.threads;
  d["switches"] = s.switches;
  d["shared_reads"] = s.shared_reads;
  d["shared_writes"] = s.shared_writes;
  d["copies"] = s.copies;
  d["barriers"] = s.barriers;
  d["warp_operations"] = s.warp_operations;
  d["matrix_products"] = s.matrix_products;
  return d;
}

// What `call` launches, without running it.
pybind11::list record(const pybind11::function& call) {
  simt::machine.recorded.clear();
  simt::machine.recording = true;
  struct Stop {
    ~Stop() { simt::machine.recording = false; }
  } stop;
  call();
  pybind11::list launches;
  for (const simt::Launch& l : simt::machine.recorded)
    launches.append(pybind11::make_tuple(l.name, l.blocks, l.threads, l.shared_bytes));
  return launches;
}

}  // namespace
}  // namespace trecvit

PYBIND11_MODULE(_simt, m) {
  using namespace trecvit;
  m.def("set_order", simt::set_order, "The order of threads and blocks: 0 ascending, any other number one of its own.");
  m.def("statistics", statistics, "What was counted since the module was loaded.");
  m.def("record", record, "(call) -> (kernel, blocks, threads, bytes of dynamic shared memory) of each launch, not run.");
  auto cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
  auto planted = m.def_submodule("faults");
  faults::bind_order_faults(planted);
  faults::bind_memory_faults(planted);
  auto primitives = m.def_submodule("primitives");
  faults::bind_primitives(primitives);
}
