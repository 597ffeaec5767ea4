// Matrix products of one warp, alike for 16-bit types and float: how their operands come from rows in shared memory and
// from registers.
//
// A row is read in strips of 64 bytes: 32 channels of 16 bits, two steps of a product over channels, or 16 floats, one
// step. With g = lane / 4 and q = lane % 4, a tile of results (16 x 8) is
// {(g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)}.
//
// A float goes to the matrix units as the sum of three bfloat16 numbers, which it is exactly (but for parts below
// 2^-133, and from 3.39e38 on it is infinite). Of the nine products of parts the six largest are taken: what is left
// out is below 2^-25 of a product, less than its rounding. The price is that of three products in tf32, of which the
// usual three are less exact: they lose up to 2^-21. Sums are float, as for the other types.
#pragma once

#include <type_traits>

#include "../common/device.h"

namespace trecvit {
namespace {

constexpr int kStripBytes = 64;

template <class IO>
constexpr bool kIsFloat = std::is_same_v<IO, float>;
// Channels and tiles of eight channels of a strip.
template <class IO>
constexpr int kStripChannels = kStripBytes / int(sizeof(IO));
template <class IO>
constexpr int kStripTiles = kStripChannels<IO> / 8;
// Steps of a product over the channels of a strip.
template <class IO>
constexpr int kStripSteps = kIsFloat<IO> ? 1 : 2;

// An operand of one step as the matrix units want it, two numbers to a word: 4 words for the left one, 2 for the
// right one.
template <class IO, int Words>
struct Operand {
  uint32_t words[Words];
};
template <int Words>
struct Operand<float, Words> {
  uint32_t words[3][Words];  // large to small parts
};

template <int Words>
TRECVIT_DEVICE void set_floats(Operand<float, Words>& operand, int i, uint32_t low_word, uint32_t high_word) {
  float low = bits_to_float(low_word), high = bits_to_float(high_word);
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const uint32_t pair = gpu::round_pair<BFloat16>(low, high);
    operand.words[part][i] = pair;
    low -= bits_to_float(pair << 16);
    high -= bits_to_float(pair & 0xffff0000u);
  }
}

TRECVIT_DEVICE float finite_or_zero(float x) { return ::fabsf(x) <= 3.4028234663852886e38f ? x : 0.0f; }

// c += a b.
template <class IO, int Steps>
TRECVIT_DEVICE void multiply_add(float (&c)[4], const Operand<IO, 4> (&a)[Steps], const Operand<IO, 2> (&b)[Steps]) {
#pragma unroll
  for (int s = 0; s < Steps; ++s) {
    if constexpr (kIsFloat<IO>) {
      float small[4] = {};
#pragma unroll
      for (int order = 2; order > 0; --order)
#pragma unroll
        for (int part = 0; part <= order; ++part)
          gpu::multiply_add_16x8x16<BFloat16>(small, a[s].words[part], b[s].words[order - part]);
      gpu::multiply_add_16x8x16<BFloat16>(c, a[s].words[0], b[s].words[0]);
      // An infinite operand has made NaNs of these; the product of the large parts already is what it should be.
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] += finite_or_zero(small[i]);
    } else {
      gpu::multiply_add_16x8x16<IO>(c, a[s].words, b[s].words);
    }
  }
}

// 16 rows of a strip as ldmatrix brings them: half s of the 64 bytes, {rows g, rows g + 8} of its first and second 16
// bytes. flip: bits to flip in each word: signs.
struct LeftStrip {
  uint32_t words[2][4];
};

TRECVIT_DEVICE LeftStrip load_left(const char* rows, int pitch, int lane, uint32_t flip) {
  LeftStrip strip;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    gpu::load_matrix_x4(strip.words[s], rows + lane % 16 * pitch + (lane / 16 + 2 * s) * 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) strip.words[s][i] ^= flip;
  }
  return strip;
}

// Floats q and q + 4, then q + 8 and q + 12 make the words of a step; the order of the channels does not matter as long
// as both operands have the same.
template <class IO>
TRECVIT_DEVICE void set_left(Operand<IO, 4> (&to)[kStripSteps<IO>], const LeftStrip& strip) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if constexpr (kIsFloat<IO>) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        set_floats(to[0], 2 * s + half, strip.words[s][half], strip.words[s][half + 2]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[s].words[i] = strip.words[s][i];
    }
  }
}

// 8 rows of a strip as the columns of a right operand: x y^T.
template <class IO>
TRECVIT_DEVICE void load_right_transposed(Operand<IO, 2> (&to)[kStripSteps<IO>], const char* rows, int pitch,
                                          int lane) {
  uint32_t words[4];
  gpu::load_matrix_x4(words, rows + lane % 8 * pitch + lane / 8 * 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (kIsFloat<IO>) {
      set_floats(to[0], i, words[2 * i], words[2 * i + 1]);
    } else {
#pragma unroll
      for (int s = 0; s < 2; ++s) to[s].words[i] = words[2 * s + i];
    }
  }
}

// 16 rows and the 16 channels from `rows` on as right operands of two tiles: x y.
template <class IO>
TRECVIT_DEVICE void load_right(Operand<IO, 2> (&to)[2][1], const char* rows, int pitch, int lane) {
  if constexpr (kIsFloat<IO>) {
    const char* first = rows + lane % 4 * 2 * pitch + lane / 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = i / 2, half = i % 2;
      const char* from = first + 8 * half * pitch + 32 * tile;
      set_floats(to[tile][0], half, gpu::load_shared(reinterpret_cast<const uint32_t*>(from)),
                 gpu::load_shared(reinterpret_cast<const uint32_t*>(from + pitch)));
    }
  } else {
    uint32_t words[4];
    gpu::load_matrix_x4_transposed(words, rows + lane % 16 * pitch + lane / 16 * 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i / 2][0].words[i % 2] = words[i];
  }
}

// Two neighbouring tiles of results, 16 x 16, rounded to IO, to become the left operand of a product over their
// columns: the layouts agree.
template <class IO>
struct LeftTiles {
  uint32_t words[kIsFloat<IO> ? 8 : 4];
};

template <class IO>
TRECVIT_DEVICE LeftTiles<IO> round_tiles(const float (&first)[4], const float (&second)[4]) {
  LeftTiles<IO> tiles;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float (&tile)[4] = i < 2 ? first : second;
    const float low = tile[i % 2 * 2], high = tile[i % 2 * 2 + 1];
    if constexpr (kIsFloat<IO>) {
      tiles.words[2 * i] = float_to_bits(low);
      tiles.words[2 * i + 1] = float_to_bits(high);
    } else {
      tiles.words[i] = gpu::round_pair<IO>(low, high);
    }
  }
  return tiles;
}

template <class IO>
TRECVIT_DEVICE void set_left(Operand<IO, 4> (&to)[1], const LeftTiles<IO>& tiles) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIsFloat<IO>) {
      // Opaque: the parts of all weights, found once for all channels, would not fit in the registers.
      set_floats(to[0], i, uint32_t(gpu::opaque(int(tiles.words[2 * i]))),
                 uint32_t(gpu::opaque(int(tiles.words[2 * i + 1]))));
    } else {
      to[0].words[i] = tiles.words[i];
    }
  }
}

}  // namespace
}  // namespace trecvit
