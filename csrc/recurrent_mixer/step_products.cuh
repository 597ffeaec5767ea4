// The gates' matrix products of a streamed frame: a tile of kStepTokens tokens times kStepGates gate channels of one
// head, for both gates, a chunk of the head's channels at a time. 16-bit types: tensor cores, both operands in shared
// memory. Others: ordinary units, weights straight from global memory, x broadcast from shared memory.
//
// Both say which sums a thread has: those of kTokens tokens, token(i) of the tile, and of kChannels gate channels,
// channel(j).
#pragma once

#include "../common/pack.cuh"

namespace trecvit {
namespace {

constexpr int kStepTokens = 16, kStepGates = 64, kStepThreads = 128;

// The gates' weights of one head from its gate channel `first` on; `packs`: all in units of 16 bytes.
template <class IO>
struct GateWeights {
  const IO *x, *a;  // (width, gates)
  int64_t width, gates, first;
  bool packs;
};

template <class IO>
struct TensorProducts {
  using S = float;
  using X = IO;
  static constexpr int kTokens = 2, kChannels = 4, kMaxChunk = 192, kUnit = 16;
  static constexpr int kPad = 8;  // keeps the rows of a matrix in different banks
  static constexpr int kWeightStride = 2 * kStepGates + kPad;
  static constexpr int kWarpGates = kStepGates / (kStepThreads / gpu::kWarp);
  static_assert(kStepTokens == 16 && kWarpGates == 16, "a warp has two products of 16 tokens and 8 gate channels");

  S sum_x[kTokens][kChannels] = {}, sum_a[kTokens][kChannels] = {};

  static int64_t shared_bytes(int64_t chunk) {
    return (kStepTokens * (chunk + kPad) + chunk * kWeightStride) * int64_t(sizeof(IO));
  }
  TRECVIT_DEVICE static int token(int i) { return gpu::thread_index() % gpu::kWarp / 4 + 8 * i; }
  TRECVIT_DEVICE static int channel(int j) {
    return gpu::thread_index() / gpu::kWarp * kWarpGates + j / 2 * 8 + gpu::thread_index() % 4 * 2 + j % 2;
  }
  TRECVIT_DEVICE static IO* weights(IO* x, int chunk) { return x + kStepTokens * (chunk + kPad); }

  // Starts copying the weights of channels [start, start + count), zeros up to `padded`.
  TRECVIT_DEVICE static void fetch(const GateWeights<IO>& from, IO* x, int chunk, int64_t start, int count,
                                   int padded) {
    IO* const to = weights(x, chunk);
    constexpr int kPacks = kStepGates / 8;
    for (int item = gpu::thread_index(); from.packs && item < padded * 2 * kPacks; item += kStepThreads) {
      const int k = item / (2 * kPacks), gate = item / kPacks % 2, at = item % kPacks * 8;
      const bool valid = k < count && from.first + at < from.gates;
      const IO* source = gate ? from.a : from.x;
      gpu::copy_async16(to + k * kWeightStride + gate * kStepGates + at,
                        valid ? source + (start + k) * from.gates + from.first + at : source, valid);
    }
    gpu::commit_copies();
    for (int item = gpu::thread_index(); !from.packs && item < padded * 2 * kStepGates; item += kStepThreads) {
      const int k = item / (2 * kStepGates), gate = item / kStepGates % 2, at = item % kStepGates;
      const bool valid = k < count && from.first + at < from.gates;
      const IO* source = gate ? from.a : from.x;
      gpu::store_shared(to + k * kWeightStride + gate * kStepGates + at,
                        valid ? source[(start + k) * from.gates + from.first + at] : IO{});
    }
  }
  TRECVIT_DEVICE static void put(IO* x, int chunk, int token, int k, IO value) {
    gpu::store_shared(x + token * (chunk + kPad) + k, value);
  }
  TRECVIT_DEVICE static void put(IO* x, int chunk, int token, int k, const gpu::Pack16& value) {
    gpu::store_shared(reinterpret_cast<gpu::Pack16*>(x + token * (chunk + kPad) + k), value);
  }
  TRECVIT_DEVICE static S at(const IO* x, int chunk, int token, int k) {
    return load(gpu::load_shared(x + token * (chunk + kPad) + k));
  }
  TRECVIT_DEVICE void multiply(const GateWeights<IO>& from, IO* x, int chunk, int64_t, int, int padded) {
    const int lane = gpu::thread_index() % gpu::kWarp, first = gpu::thread_index() / gpu::kWarp * kWarpGates;
    if (from.first + first >= from.gates) return;
    // Lane l gives the address of row l % 8 of matrix l / 8. Of x: tokens 0 - 7, tokens 8 - 15, the same 8 channels on;
    // of the weights: channels 0 - 7, channels 8 - 15, the same 8 gate channels on.
    const int row = lane % 16, half = lane / 16 * 8;
    const IO* x_row = x + row * (chunk + kPad) + half;
    const IO* w_row = weights(x, chunk) + row * kWeightStride + half + first;
    float gate_x[2][4] = {}, gate_a[2][4] = {};
    for (int k = 0; k < padded; k += kUnit) {
      uint32_t b_x[4], b_w[4];
      gpu::load_matrix_x4(b_x, x_row + k);
      gpu::load_matrix_x4_transposed(b_w, w_row + k * kWeightStride);
      gpu::multiply_add_16x8x16<IO>(gate_x[0], b_x, {b_w[0], b_w[1]});
      gpu::multiply_add_16x8x16<IO>(gate_x[1], b_x, {b_w[2], b_w[3]});
      gpu::load_matrix_x4_transposed(b_w, w_row + k * kWeightStride + kStepGates);
      gpu::multiply_add_16x8x16<IO>(gate_a[0], b_x, {b_w[0], b_w[1]});
      gpu::multiply_add_16x8x16<IO>(gate_a[1], b_x, {b_w[2], b_w[3]});
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        sum_x[i][j] += gate_x[j / 2][2 * i + j % 2];
        sum_a[i][j] += gate_a[j / 2][2 * i + j % 2];
      }
  }
};

template <class IO>
struct PlainProducts {
  using S = IO;
  using X = IO;
  static constexpr int kTokens = 8, kChannels = 1, kMaxChunk = 256, kUnit = 4;
  static constexpr int kLanes = kLanesPerPack<S>;
  static_assert(kStepTokens * kStepGates == kStepThreads * kTokens);

  S sum_x[kTokens][kChannels] = {}, sum_a[kTokens][kChannels] = {};

  static int64_t shared_bytes(int64_t chunk) { return kStepTokens * chunk * int64_t(sizeof(S)); }
  TRECVIT_DEVICE static int token(int i) { return gpu::thread_index() / kStepGates * kTokens + i; }
  TRECVIT_DEVICE static int channel(int) { return gpu::thread_index() % kStepGates; }

  TRECVIT_DEVICE static void fetch(const GateWeights<IO>&, S*, int, int64_t, int, int) {}
  TRECVIT_DEVICE static void put(S* x, int chunk, int token, int k, IO value) {
    gpu::store_shared(x + token * chunk + k, value);
  }
  TRECVIT_DEVICE static void put(S* x, int chunk, int token, int k, const gpu::Pack16& value) {
    gpu::store_shared(reinterpret_cast<gpu::Pack16*>(x + token * chunk + k), value);
  }
  TRECVIT_DEVICE static S at(const S* x, int chunk, int token, int k) {
    return gpu::load_shared(x + token * chunk + k);
  }

  TRECVIT_DEVICE void multiply(const GateWeights<IO>& from, const S* x, int chunk, int64_t start, int count,
                               int padded) {
    const int64_t gate = from.first + channel(0);
    if (gate >= from.gates) return;
    const IO *w_x = from.x + start * from.gates + gate, *w_a = from.a + start * from.gates + gate;
#pragma unroll 2
    for (int k = 0; k < padded; k += kUnit) {
      S b_wx[kUnit], b_wa[kUnit];
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        b_wx[i] = k + i < count ? w_x[(k + i) * from.gates] : S(0);
        b_wa[i] = k + i < count ? w_a[(k + i) * from.gates] : S(0);
      }
#pragma unroll
      for (int i_token = 0; i_token < kTokens; ++i_token)
#pragma unroll
        for (int part = 0; part < kUnit; part += kLanes) {
          S b_x[kLanes];
          unpack<S>(gpu::load_shared(reinterpret_cast<const gpu::Pack16*>(x + token(i_token) * chunk + k + part)), b_x);
#pragma unroll
          for (int i = 0; i < kLanes; ++i) {
            sum_x[i_token][0] += b_x[i] * b_wx[part + i];
            sum_a[i_token][0] += b_x[i] * b_wa[part + i];
          }
        }
    }
  }
};

template <class IO>
struct ProductsOf {
  using type = TensorProducts<IO>;
};
template <>
struct ProductsOf<float> {
  using type = PlainProducts<float>;
};
template <>
struct ProductsOf<double> {
  using type = PlainProducts<double>;
};

}  // namespace
}  // namespace trecvit
