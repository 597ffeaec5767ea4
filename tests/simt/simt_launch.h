// The host side of a launch under the SIMT harness: the kernel runs at once, on the calling thread.
#pragma once

#include <string.h>

#include <tuple>
#include <type_traits>

namespace trecvit {
namespace simt {

// Runs a kernel; null, or what the harness found. The text is valid until the thread's next launch.
const char* run(const char* name, int64_t blocks, int threads, int64_t shared_bytes, void (*body)(const void*),
                const void* arguments);

}  // namespace simt

namespace {

class DeviceScope {
 public:
  explicit DeviceScope(const CudaLaunch&) {}
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              Arguments... arguments) {
    static_assert((std::is_trivially_copyable_v<Parameters> && ...) && (0 + ... + sizeof(Parameters)) <= 4096);
    if (error_ || blocks == 0) return;
    const std::tuple<void (*)(Parameters...), std::tuple<Parameters...>> call{kernel, {Parameters(arguments)...}};
    error_ = simt::run(
        name, blocks, threads, shared_bytes,
        [](const void* p) {
          const auto& [function, values] = *static_cast<const decltype(call)*>(p);
          std::apply(function, values);
        },
        &call);
  }
  void clear(void* memory, int64_t bytes) {
    if (!error_ && bytes > 0) memset(memory, 0, size_t(bytes));
  }
  const char* error() const { return error_; }

 private:
  const char* error_ = nullptr;
};

}  // namespace
}  // namespace trecvit
