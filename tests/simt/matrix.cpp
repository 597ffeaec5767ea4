// ldmatrix and mma.sync. The layouts are PTX's, as csrc/common/device.h states them; tests/test_simt.py holds them
// against plain products.
#include "machine.h"

namespace trecvit::simt {

void load_matrix(uint32_t (&to)[4], const void* row, bool transposed, Place place) {
  const int lane = my_lane();
  Warp& warp = my_warp();
  read_shared(row, 16, 16, place);
  memcpy(warp.in[lane].bytes, row, 16);
  if (arrive(Operation::kLoadMatrix, transposed, 0, place)) {
    ++machine.statistics.warp_operations;
    for (int l = 0; l < kLanes; ++l) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int half = 0; half < 2; ++half) {
          const int i = transposed ? 2 * (l % 4) + half : l / 4, j = transposed ? l / 4 : 2 * (l % 4) + half;
          memcpy(warp.out[l].bytes + 4 * matrix + 2 * half, warp.in[8 * matrix + i].bytes + 2 * j, 2);
        }
      }
    }
    depart();
  }
  memcpy(to, warp.out[lane].bytes, 16);
}

namespace {

struct Fragments {
  float c[4];
  uint32_t a[4], b[2];
};
static_assert(sizeof(Fragments) <= sizeof(Slot::bytes));

template <class IO>
float half_of(uint32_t pair, int half) {
  return load(IO{uint16_t(pair >> (16 * half))});
}

// The upper 19 bits are all that the machine reads.
float tf32(uint32_t bits) { return bits_to_float(bits & 0xffffe000u); }

// The fragments of all lanes as matrices: a 16 x K, b K x 8, K up to 16.
struct Operands {
  float a[16][16], b[16][8];
};

template <class IO>
void gather(const Fragments (&lanes)[kLanes], Operands& o) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i)
        o.a[g + 8 * (i % 2)][2 * q + 8 * (i / 2) + half] = half_of<IO>(lanes[lane].a[i], half);
      for (int i = 0; i < 2; ++i) o.b[2 * q + 8 * i + half][g] = half_of<IO>(lanes[lane].b[i], half);
    }
  }
}

void gather_tf32(const Fragments (&lanes)[kLanes], Operands& o) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) o.a[g + 8 * (i % 2)][q + 4 * (i / 2)] = tf32(lanes[lane].a[i]);
    for (int i = 0; i < 2; ++i) o.b[q + 4 * i][g] = tf32(lanes[lane].b[i]);
  }
}

}  // namespace

void multiply_add(Matrix type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  const int lane = my_lane();
  Warp& warp = my_warp();
  Fragments mine;
  memcpy(mine.c, c, sizeof c);
  memcpy(mine.a, a, sizeof a);
  memcpy(mine.b, b, sizeof b);
  memcpy(warp.in[lane].bytes, &mine, sizeof mine);
  if (arrive(Operation::kMultiply, int(type), 0, place)) {
    ++machine.statistics.matrix_products;
    Fragments lanes[kLanes];
    for (int l = 0; l < kLanes; ++l) memcpy(&lanes[l], warp.in[l].bytes, sizeof lanes[l]);
    Operands o;
    if (type == Matrix::kBFloat16) gather<BFloat16>(lanes, o);
    if (type == Matrix::kFloat16) gather<Float16>(lanes, o);
    if (type == Matrix::kTf32) gather_tf32(lanes, o);
    const int depth = type == Matrix::kTf32 ? 8 : 16;
    float sums[16][8] = {};
    for (int k = 0; k < depth; ++k) {
      for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) sums[m][n] += o.a[m][k] * o.b[k][n];
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      float result[4];
      for (int i = 0; i < 4; ++i) result[i] = lanes[l].c[i] + sums[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
      memcpy(warp.out[l].bytes, result, sizeof result);
    }
    depart();
  }
  memcpy(c, warp.out[lane].bytes, sizeof c);
}

}  // namespace trecvit::simt
