// Host side of the CUDA launchers. A launcher is plain C: it takes a pointer to its parameters and one to a CudaLaunch, allocates
// nothing, never waits for the GPU, and returns null or, if CUDA refused something, the reason as text (valid until the
// thread's next launch).
#pragma once

#include <stdint.h>

namespace trecvit {

struct CudaLaunch {
  int device = 0;
  int multiprocessors = 1;
  void* stream = nullptr;     // cudaStream_t; null: the default stream
  void* workspace = nullptr;  // of as many bytes as the op's *_workspace function says, 16-byte aligned
};

}  // namespace trecvit

#if defined(TRECVIT_SIMT)
#include "simt_launch.h"  // tests/simt: DeviceScope and launch
#elif defined(__CUDACC__)

#include <cuda_runtime.h>
#include <stdio.h>

namespace trecvit {
namespace {

// Makes a device current as long as it lives, and keeps the first error.
class DeviceScope {
 public:
  explicit DeviceScope(const CudaLaunch& launch) : stream_(static_cast<cudaStream_t>(launch.stream)) {
    if (check(cudaGetDevice(&before_), "cudaGetDevice") && before_ != launch.device)
      changed_ = check(cudaSetDevice(launch.device), "cudaSetDevice");
  }
  ~DeviceScope() { restore(); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  // Launches kernel(arguments...) unless something failed before.
  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              Arguments... arguments) {
    if (error_ || blocks == 0) return;
    if (blocks > 0x7fffffff) {
      fail(name, "more blocks than a grid may have");
      return;
    }
    if (shared_bytes > 48 * 1024 &&
        !check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), name))
      return;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
  }
  // Fills memory with zero bytes, in the stream.
  void clear(void* memory, int64_t bytes) {
    if (!error_ && bytes > 0) check(cudaMemsetAsync(memory, 0, size_t(bytes), stream_), "cudaMemsetAsync");
  }
  // Ends the scope. Null if all went well.
  const char* error() {
    restore();
    return error_;
  }

 private:
  void restore() {
    if (!changed_) return;
    changed_ = false;
    check(cudaSetDevice(before_), "cudaSetDevice");
  }
  bool check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return true;
    cudaGetLastError();  // the error is reported here: the next call should not see it again
    fail(what, cudaGetErrorString(status));
    return false;
  }
  void fail(const char* what, const char* why) {
    if (error_) return;  // the first one counts
    static thread_local char text[512];
    snprintf(text, sizeof text, "%s: %s", what, why);
    error_ = text;
  }

  cudaStream_t stream_;
  int before_ = 0;
  bool changed_ = false;
  const char* error_ = nullptr;
};

}  // namespace
}  // namespace trecvit
#endif
