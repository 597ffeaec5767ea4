// Everything that a GPU kernel asks of the machine, so that kernel sources know neither nvcc nor PTX: threads, barriers,
// shared memory, asynchronous copies, matrix products, fences. The same source compiles with nvcc for a GPU and, with
// TRECVIT_SIMT, with a C++ compiler for tests/simt, which runs it on a CPU and watches what it does.
//
// Rules that keep both builds alike:
//   - kernels are `TRECVIT_KERNEL(threads) void name(Params p)` with trivially copyable parameters by value;
//   - grids and blocks have one dimension; blocks are a multiple of 32 threads;
//   - shared memory is reached through load_shared, store_shared, copy_async, load_matrix only (a raw access is not watched);
//   - all threads named by a barrier, and all 32 lanes of a warp at a warp operation, reach it at the same place;
//   - host libm names (::sqrt, ::exp) are fine, CUDA intrinsics are not: they belong here.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace trecvit::gpu {

constexpr int kWarp = 32;

// What 16-byte loads and stores move.
struct alignas(16) Pack16 {
  uint32_t words[4];
};
struct alignas(8) Pack8 {
  uint32_t words[2];
};

}  // namespace trecvit::gpu

#if defined(TRECVIT_SIMT)
#include "simt.h"  // tests/simt
#else

#define TRECVIT_DEVICE __device__ __forceinline__
// Threads of a block and, if registers have to be kept few for it, how many blocks a multiprocessor should hold.
#define TRECVIT_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
// `name`, an array of `count` elements in the block's shared memory, uninitialised.
#define TRECVIT_SHARED(type, name, count) __shared__ __align__(16) type name[count]
// `name`, char*, the dynamic shared memory whose size the launch gave; 16-byte aligned.
#define TRECVIT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]

namespace trecvit::gpu {

// Where a thread is.
TRECVIT_DEVICE int thread_index() { return int(threadIdx.x); }
TRECVIT_DEVICE int block_threads() { return int(blockDim.x); }
TRECVIT_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }

// Barriers. They also order what the waiting threads did to shared and global memory.
TRECVIT_DEVICE void sync_block() { __syncthreads(); }
TRECVIT_DEVICE void sync_warp() { __syncwarp(); }
// A barrier of the first `threads` threads that arrive (whole warps); id 1 .. 15.
TRECVIT_DEVICE void sync_named(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Warp operations; all 32 lanes take part.
template <class T>
TRECVIT_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <class T>
TRECVIT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
TRECVIT_DEVICE T shuffle_up(T value, int distance) {  // lanes below `distance` keep their own
  return __shfl_up_sync(0xffffffffu, value, distance);
}
template <class T>
TRECVIT_DEVICE T shuffle_down(T value, int distance) {  // the last `distance` lanes keep their own
  return __shfl_down_sync(0xffffffffu, value, distance);
}
TRECVIT_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
TRECVIT_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition); }

// Global memory in units of 16 (or 8) bytes; the address is a multiple of that.
TRECVIT_DEVICE Pack16 load16(const void* from) { return *static_cast<const Pack16*>(from); }
// In assembly: the compiler takes plain stores apart where another path stores single elements to the same place.
TRECVIT_DEVICE void store16(void* to, Pack16 value) {
  const auto* w = value.words;
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]),
               "r"(w[2]), "r"(w[3])
               : "memory");
}
TRECVIT_DEVICE void store8(void* to, Pack8 value) {
  const auto* w = value.words;
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1])
               : "memory");
}

// Shared memory. T of up to 16 bytes, naturally aligned.
template <class T>
TRECVIT_DEVICE T load_shared(const T* from) {
  return *from;
}
template <class T>
TRECVIT_DEVICE void store_shared(T* to, T value) {
  *to = value;
}

TRECVIT_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// Asynchronous copies from global to shared memory, of 16 (or 4, 8) bytes, both addresses aligned to that. Not `valid`: zeros are
// written and `from` is not read. A thread sees its own copies after wait_copies, other threads after a barrier behind it.
TRECVIT_DEVICE void copy_async16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
template <int Bytes>
TRECVIT_DEVICE void copy_async_small(void* to, const void* from, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8, "16 bytes have copy_async16");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(Bytes), "r"(valid ? Bytes : 0)
               : "memory");
}
// Ends a group of copies (of this thread; it may be empty).
TRECVIT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `Groups` youngest groups of this thread are under way.
template <int Groups>
TRECVIT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

// ldmatrix: 8x8 matrices of 16-bit elements. Lane l gives the address (16-byte aligned) of row l % 8 of matrix l / 8; register m of
// lane l receives elements (l / 4, 2 (l % 4)) and the next of matrix m; transposed: (2 (l % 4), l / 4) and the one below.
TRECVIT_DEVICE void load_matrix_x4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
TRECVIT_DEVICE void load_matrix_x4_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b for one warp, fragments as PTX lays them out (mma.m16n8k16, .row.col), float sums. With g = lane / 4, q = lane % 4:
//   a: 16x16, registers (g, 2q..), (g + 8, 2q..), (g, 2q + 8..), (g + 8, 2q + 8..), two neighbouring k in each, the first low;
//   b: 16x8, registers (k = 2q.., n = g), (k = 2q + 8.., n = g);   c: 16x8, (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
template <class IO>
TRECVIT_DEVICE void multiply_add_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
TRECVIT_DEVICE void multiply_add_16x8x16<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
TRECVIT_DEVICE void multiply_add_16x8x16<Float16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// tf32 (the upper 19 bits of a float; use to_tf32): a: 16x8, (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4); b: 8x8, (k = q, n = g),
// (k = q + 4, n = g); c as above.
TRECVIT_DEVICE void multiply_add_tf32_16x8x8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Round to the nearest tf32, ties away from zero; as float bits.
TRECVIT_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Two numbers rounded to a 16-bit type (to nearest even), the first in the low half.
template <class IO>
TRECVIT_DEVICE uint32_t round_pair(float low, float high);
template <>
TRECVIT_DEVICE uint32_t round_pair<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
TRECVIT_DEVICE uint32_t round_pair<Float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Between blocks of one launch: what a thread wrote before publish(flag, value) is there for whoever saw the value.
TRECVIT_DEVICE uint32_t atomic_add(uint32_t* counter, uint32_t value) { return atomicAdd(counter, value); }
TRECVIT_DEVICE void publish(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Spins until *flag == value. What is waited for must come from a block that is running or done: take work by a counter
// (atomic_add), not by block_index.
TRECVIT_DEVICE void wait_for(const uint32_t* flag, uint32_t value) {
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen != value);
}
TRECVIT_DEVICE void fence() { __threadfence(); }
// Past the L1 cache: what other blocks published.
template <class T>
TRECVIT_DEVICE T load_published(const T* from) {
  return __ldcg(from);
}

// x, of which the compiler knows nothing: what is computed from it is computed where it stands, rather than once before
// a loop and kept in registers that the loop needs.
TRECVIT_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Values with a tag, both in one word, so that whoever sees the tag has the value: half the way of publish and
// load_published. The first `count` of N; the words change their tags by publish_tagged only.
template <int N>
TRECVIT_DEVICE void publish_tagged(uint64_t* to, uint32_t tag, const uint32_t (&values)[N], int count) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k < count) {
      const uint64_t word = uint64_t(tag) << 32 | values[k];
      asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to + k), "l"(word) : "memory");
    }
  }
}
// Spins until all have the tag; what wait_for says holds here too. Values from `count` on are 0.
template <int N>
TRECVIT_DEVICE void wait_tagged(const uint64_t* from, uint32_t tag, uint32_t (&values)[N], int count) {
  bool all;
  do {
    all = true;
    uint64_t words[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      words[k] = uint64_t(tag) << 32;
      if (k < count) asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(words[k]) : "l"(from + k) : "memory");
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      all = all && uint32_t(words[k] >> 32) == tag;
      values[k] = uint32_t(words[k]);
    }
  } while (!all);
}

// 2^x by the special function units, to two ulp; subnormal results are 0.
TRECVIT_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace trecvit::gpu
#endif
