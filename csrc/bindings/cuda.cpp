// Every function takes (device, multiprocessors, stream, allocate) and then the launcher's own arguments. `allocate` is
// called with a number of bytes if the kernels need scratch memory, and returns its address.
#include "cuda.h"

#include "../common/launch.h"
#include "arguments.h"

namespace trecvit {
namespace {

constexpr size_t kOwnArguments = 4;

template <class P>
auto launcher(const char* (*run)(const P*, const CudaLaunch*), int64_t (*workspace)(const P*, const CudaLaunch*)) {
  return [run, workspace](const py::args& args) {
    CudaLaunch launch;
    launch.device = args[0].cast<int>();
    launch.multiprocessors = args[1].cast<int>();
    launch.stream = pointer(args[2]);
    const P p = parameters<P>(args, kOwnArguments);
    if (const int64_t bytes = workspace ? workspace(&p, &launch) : 0) launch.workspace = pointer(args[3](bytes));
    const char* error;
    {
      py::gil_scoped_release release;
      error = run(&p, &launch);
    }
    if (error) throw std::runtime_error(error);
  };
}

}  // namespace

void bind_cuda(py::module_& m) {
  const auto define = [&](const char* name, auto run, auto workspace) { m.def(name, launcher(run, workspace)); };
  define("linear_scan_forward", trecvit_cuda_linear_scan_forward, trecvit_cuda_linear_scan_forward_workspace);
  define("linear_scan_backward", trecvit_cuda_linear_scan_backward, trecvit_cuda_linear_scan_backward_workspace);
  define("gated_lru_forward", trecvit_cuda_gated_lru_forward, trecvit_cuda_gated_lru_forward_workspace);
  define("gated_lru_backward", trecvit_cuda_gated_lru_backward, trecvit_cuda_gated_lru_backward_workspace);
  define("causal_conv_forward", trecvit_cuda_causal_conv_forward, trecvit_cuda_causal_conv_forward_workspace);
  define("causal_conv_backward", trecvit_cuda_causal_conv_backward, trecvit_cuda_causal_conv_backward_workspace);
  define("spatial_attention_forward", trecvit_cuda_spatial_attention_forward,
         trecvit_cuda_spatial_attention_forward_workspace);
  define("spatial_attention_backward", trecvit_cuda_spatial_attention_backward,
         trecvit_cuda_spatial_attention_backward_workspace);
  m.def("residual_norm", launcher<ResidualNorm>(trecvit_cuda_residual_norm, nullptr));
  m.def("mixer_step", launcher<MixerStep>(trecvit_cuda_mixer_step, nullptr));
}

}  // namespace trecvit
