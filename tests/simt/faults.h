// Small kernels, each with one fault that can be planted, to see that the harness finds it; without it each is correct.
// In Python: _simt.faults.name(correct) returns what the harness found, or None.
#pragma once

#include <pybind11/pybind11.h>

#include "../../csrc/common/device.h"

namespace trecvit::faults {

struct Plan {
  bool correct;
  const float* in;  // 4096 ones
  float* out;       // 4096
  uint32_t* flags;  // 64 zeros
};

struct Fault {
  const char* name;
  void (*kernel)(Plan);
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};
#define TRECVIT_FAULT(name, blocks, threads, shared_bytes) {#name, name, blocks, threads, shared_bytes}

void define(pybind11::module_& m, const Fault& fault);  // module.cpp
void bind_order_faults(pybind11::module_& m);
void bind_memory_faults(pybind11::module_& m);
void bind_primitives(pybind11::module_& m);

}  // namespace trecvit::faults
