// Kernels of one primitive each, whose results tests/test_simt.py compares with plain Python, and a small matrix
// product by ldmatrix and mma.sync in which wrong indices can be planted.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "../../csrc/common/launch.h"
#include "faults.h"

namespace trecvit::faults {
namespace {

using namespace gpu;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, Arguments... arguments) {
  DeviceScope scope{CudaLaunch{}};
  scope.launch("primitive", kernel, blocks, threads, shared_bytes, arguments...);
  if (scope.error()) throw std::runtime_error(scope.error());
}

TRECVIT_KERNEL(32) void shuffle_kernel(int kind, const double* values, const int* arguments, double* results) {
  const int i = thread_index();
  const int argument = arguments[i];
  if (kind == 0) results[i] = shuffle(values[i], argument);
  if (kind == 1) results[i] = shuffle_xor(values[i], argument);
  if (kind == 2) results[i] = shuffle_up(values[i], argument);
  if (kind == 3) results[i] = shuffle_down(values[i], argument);
}

TRECVIT_KERNEL(32) void ballot_kernel(const int* conditions, uint32_t* results) {
  const int i = thread_index();
  results[i] = ballot(conditions[i] != 0);
  if (any_lane(conditions[i] != 0) != (results[i] != 0)) results[i] = ~results[i];
}

// bytes: 512 of them, four 8x8 matrices of 16 bits one behind the other.
TRECVIT_KERNEL(32) void load_matrix_kernel(bool transposed, const Pack16* bytes, uint32_t (*results)[4]) {
  TRECVIT_SHARED(Pack16, rows, 32);
  const int i = thread_index();
  store_shared(&rows[i], load16(&bytes[i]));
  sync_warp();
  if (transposed) {
    load_matrix_x4_transposed(results[i], &rows[i]);
  } else {
    load_matrix_x4(results[i], &rows[i]);
  }
}

// Fragments of 32 lanes, one behind the other.
TRECVIT_KERNEL(32) void multiply_add_kernel(int type, const uint32_t (*a)[4], const uint32_t (*b)[2], float (*c)[4]) {
  const int i = thread_index();
  if (type == 0) multiply_add_16x8x16<BFloat16>(c[i], a[i], b[i]);
  if (type == 1) multiply_add_16x8x16<Float16>(c[i], a[i], b[i]);
  if (type == 2) multiply_add_tf32_16x8x8(c[i], a[i], b[i]);
}

// c = a b for row-major 16x16 matrices, as the attention kernels do it: rows into shared memory by asynchronous copies,
// fragments by ldmatrix, b's transposed, two products side by side.
enum Planted { kNothing, kSwappedFragments, kWrongColumns, kWrongRows, kNotTransposed };

TRECVIT_KERNEL(32) void product_kernel(int planted, const uint16_t* a, const uint16_t* b, float* c) {
  TRECVIT_SHARED(uint16_t, tile_a, 256);
  TRECVIT_SHARED(uint16_t, tile_b, 256);
  const int lane = thread_index();
  copy_async16(&tile_a[8 * lane], a + 8 * lane);
  copy_async16(&tile_b[8 * lane], b + 8 * lane);
  commit_copies();
  wait_copies<0>();
  sync_warp();
  // Quadrants in the order of a's registers: rows 0-7, rows 8-15, both again for k from 8.
  const int row = planted == kWrongRows ? lane % 8 + 8 * (lane / 16) : lane % 16;
  const int column = planted == kWrongRows ? lane / 8 % 2 * 8 : lane / 16 * 8;
  uint32_t af[4], bf[4];
  load_matrix_x4(af, &tile_a[16 * row + column]);
  if (planted == kNotTransposed) {
    load_matrix_x4(bf, &tile_b[16 * (lane % 16) + lane / 16 * 8]);
  } else {
    load_matrix_x4_transposed(bf, &tile_b[16 * (lane % 16) + lane / 16 * 8]);
  }
  if (planted == kSwappedFragments) {
    const uint32_t first = af[1];
    af[1] = af[2];
    af[2] = first;
  }
  for (int half = 0; half < 2; ++half) {
    float sums[4] = {};
    const uint32_t b_half[2] = {bf[2 * half], bf[2 * half + 1]};
    multiply_add_16x8x16<BFloat16>(sums, af, b_half);
    const int pair = planted == kWrongColumns ? lane % 4 : 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) c[16 * (lane / 4 + 8 * (i / 2)) + 8 * half + pair + i % 2] = sums[i];
  }
}

// When each thread came, of all.
TRECVIT_KERNEL(256) void arrival_kernel(uint32_t* counter, uint32_t* results) {
  results[block_index() * block_threads() + thread_index()] = atomic_add(counter, 1);
}

// A sum that goes from block to block, as in a scan of one pass: in the order of tickets, each adds one to what the one
// before published.
enum Hasty { kPatient, kPublishesEarly, kReadsEarly };

TRECVIT_KERNEL(128) void handover_kernel(int hasty, uint32_t* tickets, uint32_t* flags, float* sums) {
  TRECVIT_SHARED(uint32_t, shared_ticket, 1);
  const int i = thread_index();
  if (i == 0) store_shared(&shared_ticket[0], atomic_add(tickets, 1));
  sync_block();
  const uint32_t ticket = load_shared(&shared_ticket[0]);
  float sum = 0;
  if (ticket > 0) {
    if (i == 0) wait_for(&flags[ticket - 1], 1);
    if (hasty != kReadsEarly) sync_block();
    sum = load_published(&sums[128 * (ticket - 1) + uint32_t(127 - i)]);
  }
  sums[128 * ticket + uint32_t(i)] = sum + 1;
  if (hasty != kPublishesEarly) sync_block();
  if (i == 0) publish(&flags[ticket], 1);
}

template <class T>
using Dense = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

template <class T>
void expect(const Dense<T>& array, int64_t size) {
  if (array.size() != size) throw std::invalid_argument("an array of the wrong size");
}

}  // namespace

void bind_primitives(pybind11::module_& m) {
  m.def("shuffle", [](int kind, const Dense<double>& values, const Dense<int>& arguments) {
    expect(values, 32), expect(arguments, 32);
    Dense<double> results(32);
    launch(shuffle_kernel, 1, 32, 0, kind, values.data(), arguments.data(), results.mutable_data());
    return results;
  });
  m.def("ballot", [](const Dense<int>& conditions) {
    expect(conditions, 32);
    Dense<uint32_t> results(32);
    launch(ballot_kernel, 1, 32, 0, conditions.data(), results.mutable_data());
    return results;
  });
  m.def("load_matrix", [](bool transposed, const Dense<uint16_t>& matrices) {
    expect(matrices, 256);
    alignas(16) char bytes[512];
    memcpy(bytes, matrices.data(), sizeof bytes);
    Dense<uint32_t> results({32, 4});
    launch(load_matrix_kernel, 1, 32, 0, transposed, reinterpret_cast<const Pack16*>(bytes),
           reinterpret_cast<uint32_t (*)[4]>(results.mutable_data()));
    return results;
  });
  m.def("multiply_add", [](int type, const Dense<uint32_t>& a, const Dense<uint32_t>& b, const Dense<float>& c) {
    expect(a, 128), expect(b, 64), expect(c, 128);
    Dense<float> results({32, 4});
    memcpy(results.mutable_data(), c.data(), 128 * sizeof(float));
    launch(multiply_add_kernel, 1, 32, 0, type, reinterpret_cast<const uint32_t (*)[4]>(a.data()),
           reinterpret_cast<const uint32_t (*)[2]>(b.data()), reinterpret_cast<float (*)[4]>(results.mutable_data()));
    return results;
  });
  m.def("product", [](int planted, const Dense<uint16_t>& a, const Dense<uint16_t>& b) {
    expect(a, 256), expect(b, 256);
    alignas(16) uint16_t inputs[512];
    memcpy(inputs, a.data(), 512);
    memcpy(inputs + 256, b.data(), 512);
    Dense<float> results({16, 16});
    memset(results.mutable_data(), 0, 256 * sizeof(float));
    launch(product_kernel, 1, 32, 0, planted, inputs, inputs + 256, results.mutable_data());
    return results;
  });
  m.def("arrival", [](int blocks, int threads) {
    uint32_t counter = 0;
    Dense<uint32_t> results({blocks, threads});
    launch(arrival_kernel, blocks, threads, 0, &counter, results.mutable_data());
    return results;
  });
  m.def("handover", [](int hasty, int blocks) {
    uint32_t tickets = 0;
    std::vector<uint32_t> flags(size_t(blocks), 0);
    Dense<float> results({blocks, 128});
    memset(results.mutable_data(), 0, size_t(results.nbytes()));
    launch(handover_kernel, blocks, 128, 0, hasty, &tickets, flags.data(), results.mutable_data());
    return results;
  });
  m.def("to_tf32", [](float x) { return bits_to_float(gpu::to_tf32(x)); });
  m.def("launch_empty", [](int64_t blocks, int threads, int64_t shared_bytes) {
    launch(+[](int) {}, blocks, threads, shared_bytes, 0);
  });
}

}  // namespace trecvit::faults
