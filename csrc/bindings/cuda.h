// The CUDA launchers as functions of a Python module, for `_native.cuda` and for the harness in tests/simt.
#pragma once

#include <pybind11/pybind11.h>

namespace trecvit {

void bind_cuda(pybind11::module_& m);

}  // namespace trecvit
