// 16 bytes of neighbouring lanes: what the kernels of the recurrent ops load and store at once.
#pragma once

#include "device.h"

namespace trecvit {
namespace {

template <class IO>
constexpr int kLanesPerPack = 16 / int(sizeof(IO));

// Lanes as values of the state type. Shifts instead of an array in memory: packs stay in registers.
TRECVIT_DEVICE void unpack(const gpu::Pack16& pack, float (&to)[4], float) {
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = bits_to_float(pack.words[j]);
}
TRECVIT_DEVICE void unpack(const gpu::Pack16& pack, double (&to)[2], double) { memcpy(to, pack.words, sizeof to); }
template <class IO>
TRECVIT_DEVICE void unpack(const gpu::Pack16& pack, float (&to)[8], IO) {
#pragma unroll
  for (int j = 0; j < 8; ++j) to[j] = load(IO{uint16_t(pack.words[j / 2] >> (j % 2 * 16))});
}
template <class IO, class S, int Lanes>
TRECVIT_DEVICE void unpack(const gpu::Pack16& pack, S (&to)[Lanes]) {
  unpack(pack, to, IO{});
}

// The reverse: rounds to IO.
TRECVIT_DEVICE void pack_lanes(const float (&from)[4], gpu::Pack16& pack, float) {
#pragma unroll
  for (int j = 0; j < 4; ++j) pack.words[j] = float_to_bits(from[j]);
}
TRECVIT_DEVICE void pack_lanes(const double (&from)[2], gpu::Pack16& pack, double) {
  memcpy(pack.words, from, sizeof from);
}
template <class IO>
TRECVIT_DEVICE void pack_lanes(const float (&from)[8], gpu::Pack16& pack, IO) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) pack.words[j / 2] = gpu::round_pair<IO>(from[j], from[j + 1]);
}
template <class IO, class S, int Lanes>
TRECVIT_DEVICE gpu::Pack16 pack_lanes(const S (&from)[Lanes]) {
  gpu::Pack16 pack;
  pack_lanes(from, pack, IO{});
  return pack;
}

}  // namespace
}  // namespace trecvit
