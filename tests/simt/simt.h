// The SIMT harness, seen from a kernel: the names of csrc/common/device.h, for a kernel that runs on a CPU and is
// watched; machine.h says how. Every function that can find a fault takes the place in the source that called it.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define TRECVIT_DEVICE inline
#define TRECVIT_KERNEL(...) __attribute__((noinline))
#define TRECVIT_SHARED(type, name, count)                                                            \
  static ::trecvit::simt::StaticShared name##_shared{#name, int64_t(sizeof(type)) * int64_t(count)}; \
  type(&name)[count] = *static_cast<type(*)[count]>(::trecvit::simt::static_shared(name##_shared))
#define TRECVIT_DYNAMIC_SHARED(name) char* const name = ::trecvit::simt::dynamic_shared()

namespace trecvit::simt {

// Where in the source something is called; as a default argument it is the caller's.
struct Place {
  const char* file = "";
  int line = 0;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator!=(const Place& other) const {
    return line != other.line || (file != other.file && strcmp(file, other.file) != 0);
  }
};

// The running thread.
struct Where {
  int thread = 0, threads = 0;
  int64_t block = 0, blocks = 0;
};
extern Where where;

// One TRECVIT_SHARED of a kernel. It gets its bytes in each launch anew, when the first thread comes by.
struct StaticShared {
  const char* name;
  int64_t bytes;
  uint64_t launch = 0;
  int64_t offset = 0;
};
void* static_shared(StaticShared& array);
char* dynamic_shared();

enum class Shuffle { kIndex, kXor, kUp, kDown };
enum class Matrix { kBFloat16, kFloat16, kTf32 };

// Ends the kernel with a fault of the running thread; printf's format.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Place place, const char* format, ...);

void barrier(int id, int threads, Place place);  // id 0: all threads of the block
void sync_warp(Place place);
void exchange(Shuffle kind, const void* value, void* result, int bytes, int argument, Place place);
uint32_t vote(bool condition, Place place);
void load_matrix(uint32_t (&to)[4], const void* row, bool transposed, Place place);
void multiply_add(Matrix type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place);

void read_shared(const void* from, int bytes, int alignment, Place place);
void write_shared(const void* to, int bytes, int alignment, Place place);
void check_global(const void* address, int alignment, const char* what, Place place);

void copy_async(void* to, const void* from, int bytes, bool valid, Place place);
void commit_copies();
void wait_copies(int groups);

void wait_for(const uint32_t* flag, uint32_t value, Place place);
void polled(const void* address, Place place);

}  // namespace trecvit::simt

namespace trecvit::gpu {

using simt::Place;

inline int thread_index() { return simt::where.thread; }
inline int block_threads() { return simt::where.threads; }
inline int64_t block_index() { return simt::where.block; }

inline void sync_block(Place place = Place::here()) { simt::barrier(0, simt::where.threads, place); }
inline void sync_warp(Place place = Place::here()) { simt::sync_warp(place); }
inline void sync_named(int id, int threads, Place place = Place::here()) {
  if (id < 1 || id > 15) simt::fail(place, "barrier %d: named barriers are 1 to 15", id);
  simt::barrier(id, threads, place);
}

template <class T>
inline T shuffle_as(simt::Shuffle kind, const T& value, int argument, Place place) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "what __shfl_sync takes");
  T result;
  simt::exchange(kind, &value, &result, sizeof(T), argument, place);
  return result;
}
template <class T>
inline T shuffle(T value, int lane, Place place = Place::here()) {
  return shuffle_as(simt::Shuffle::kIndex, value, lane, place);
}
template <class T>
inline T shuffle_xor(T value, int mask, Place place = Place::here()) {
  return shuffle_as(simt::Shuffle::kXor, value, mask, place);
}
template <class T>
inline T shuffle_up(T value, int distance, Place place = Place::here()) {
  return shuffle_as(simt::Shuffle::kUp, value, distance, place);
}
template <class T>
inline T shuffle_down(T value, int distance, Place place = Place::here()) {
  return shuffle_as(simt::Shuffle::kDown, value, distance, place);
}
inline uint32_t ballot(bool condition, Place place = Place::here()) { return simt::vote(condition, place); }
inline bool any_lane(bool condition, Place place = Place::here()) { return simt::vote(condition, place) != 0; }

inline Pack16 load16(const void* from, Place place = Place::here()) {
  simt::check_global(from, 16, "load16", place);
  Pack16 value;
  memcpy(&value, from, sizeof value);
  return value;
}
inline void store16(void* to, Pack16 value, Place place = Place::here()) {
  simt::check_global(to, 16, "store16", place);
  memcpy(to, &value, sizeof value);
}
inline void store8(void* to, Pack8 value, Place place = Place::here()) {
  simt::check_global(to, 8, "store8", place);
  memcpy(to, &value, sizeof value);
}

template <class T>
inline T load_shared(const T* from, Place place = Place::here()) {
  static_assert(sizeof(T) <= 16);
  simt::read_shared(from, sizeof(T), alignof(T), place);
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
inline void store_shared(T* to, T value, Place place = Place::here()) {
  static_assert(sizeof(T) <= 16);
  simt::write_shared(to, sizeof(T), alignof(T), place);
  memcpy(to, &value, sizeof value);
}

inline void copy_async16(void* to, const void* from, bool valid = true, Place place = Place::here()) {
  simt::copy_async(to, from, 16, valid, place);
}
template <int Bytes>
inline void copy_async_small(void* to, const void* from, bool valid = true, Place place = Place::here()) {
  static_assert(Bytes == 4 || Bytes == 8, "16 bytes have copy_async16");
  simt::copy_async(to, from, Bytes, valid, place);
}
inline void commit_copies() { simt::commit_copies(); }
template <int Groups>
inline void wait_copies() {
  simt::wait_copies(Groups);
}

inline void load_matrix_x4(uint32_t (&to)[4], const void* row, Place place = Place::here()) {
  simt::load_matrix(to, row, false, place);
}
inline void load_matrix_x4_transposed(uint32_t (&to)[4], const void* row, Place place = Place::here()) {
  simt::load_matrix(to, row, true, place);
}

template <class IO>
inline void multiply_add_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 Place place = Place::here()) {
  static_assert(std::is_same_v<IO, BFloat16> || std::is_same_v<IO, Float16>);
  simt::multiply_add(std::is_same_v<IO, BFloat16> ? simt::Matrix::kBFloat16 : simt::Matrix::kFloat16, c, a, b, place);
}
inline void multiply_add_tf32_16x8x8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     Place place = Place::here()) {
  simt::multiply_add(simt::Matrix::kTf32, c, a, b, place);
}
// NaN becomes the canonical one; infinity stays.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  if ((bits & 0x7fffffffu) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

template <class IO>
inline uint32_t round_pair(float low, float high) {
  IO first, second;
  store(first, low);
  store(second, high);
  return uint32_t(first.bits) | uint32_t(second.bits) << 16;
}

inline uint32_t atomic_add(uint32_t* counter, uint32_t value, Place place = Place::here()) {
  simt::check_global(counter, 4, "atomic_add", place);
  const uint32_t before = *counter;
  *counter = before + value;
  return before;
}
inline void publish(uint32_t* flag, uint32_t value, Place place = Place::here()) {
  simt::check_global(flag, 4, "publish", place);
  *static_cast<volatile uint32_t*>(flag) = value;
}
inline void wait_for(const uint32_t* flag, uint32_t value, Place place = Place::here()) {
  simt::wait_for(flag, value, place);
}
inline void fence() {}
template <class T>
inline T load_published(const T* from, Place place = Place::here()) {
  simt::check_global(from, alignof(T), "load_published", place);
  simt::polled(from, place);
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <int N>
inline void publish_tagged(uint64_t* to, uint32_t tag, const uint32_t (&values)[N], int count,
                           Place place = Place::here()) {
  simt::check_global(to, 8, "publish_tagged", place);
  volatile uint64_t* const words = to;
  for (int k = 0; k < N && k < count; ++k) words[k] = uint64_t(tag) << 32 | values[k];
}
template <int N>
inline void wait_tagged(const uint64_t* from, uint32_t tag, uint32_t (&values)[N], int count,
                        Place place = Place::here()) {
  simt::check_global(from, 8, "wait_tagged", place);
  for (int k = 0; k < N; ++k) {
    values[k] = 0;
    if (k >= count) continue;
    simt::wait_for(reinterpret_cast<const uint32_t*>(from + k) + 1, tag, place);  // the upper half
    values[k] = uint32_t(reinterpret_cast<const volatile uint64_t*>(from)[k]);
  }
}

inline int opaque(int x) { return x; }

inline float fast_exp2(float x) {
  const float y = ::exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

}  // namespace trecvit::gpu
