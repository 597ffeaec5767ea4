// Outputs handed to Python without copying: the tensor structure of DLPack (https://dmlc.github.io/dlpack), version 0.
#pragma once

#include <stdint.h>

#include <vector>

#include "memory.h"

namespace trecvit {

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

// A contiguous tensor in memory from `acquire_memory`, which its deleter releases.
struct Output {
  DLManagedTensor managed;
  std::vector<int64_t> shape;

  static DLManagedTensor* make(std::vector<int64_t> shape, int type_code, int type_bits) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    auto* output = new Output{{}, std::move(shape)};
    try {
      output->managed.tensor.data = acquire_memory(count * type_bits / 8);
    } catch (...) {
      delete output;
      throw;
    }
    output->managed.tensor.device_type = 1;  // CPU
    output->managed.tensor.ndim = int32_t(output->shape.size());
    output->managed.tensor.type_code = uint8_t(type_code);
    output->managed.tensor.type_bits = uint8_t(type_bits);
    output->managed.tensor.type_lanes = 1;
    output->managed.tensor.shape = output->shape.data();
    output->managed.context = output;
    output->managed.deleter = [](DLManagedTensor* self) {
      release_memory(self->tensor.data);
      delete static_cast<Output*>(self->context);
    };
    return &output->managed;
  }
};

}  // namespace trecvit
