// Faults in what threads do to shared memory.
#include "faults.h"

namespace trecvit::faults {
namespace {

using namespace gpu;

// ---- Shared memory -------------------------------------------------------------------------------------------------

TRECVIT_KERNEL(32) void uninitialised_read(Plan p) {
  TRECVIT_SHARED(float, values, 33);
  store_shared(&values[thread_index()], 1.0f);
  sync_warp();
  p.out[thread_index()] = load_shared(&values[thread_index() + (p.correct ? 0 : 1)]);
}

// Half of the sixteen bytes.
TRECVIT_KERNEL(32) void partly_uninitialised_read(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* packs = reinterpret_cast<Pack16*>(raw);
  uint32_t* words = packs[thread_index()].words;
  for (int i = 0; i < (p.correct ? 4 : 2); ++i) store_shared(&words[i], 1u);
  p.out[thread_index()] = float(load_shared(&packs[thread_index()]).words[0]);
}

// What the block before left is gone.
TRECVIT_KERNEL(32) void left_by_the_block_before(Plan p) {
  TRECVIT_SHARED(float, values, 32);
  if (p.correct || block_index() == 0) store_shared(&values[thread_index()], 1.0f);
  p.out[thread_index()] = load_shared(&values[thread_index()]);
}

TRECVIT_KERNEL(32) void out_of_bounds_read(Plan p) {
  TRECVIT_SHARED(float, values, 32);
  TRECVIT_SHARED(float, others, 32);
  store_shared(&values[thread_index()], 1.0f);
  store_shared(&others[thread_index()], 2.0f);
  sync_warp();
  p.out[thread_index()] = load_shared(values + (thread_index() + (p.correct ? 0 : 1))) + load_shared(&others[0]);
}

TRECVIT_KERNEL(32) void out_of_bounds_write(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  float* values = reinterpret_cast<float*>(raw);
  store_shared(values + thread_index() - (p.correct ? 0 : 1), p.in[0]);
}

TRECVIT_KERNEL(32) void misaligned_shared(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  const int pitch = p.correct ? 32 : 24;
  store_shared(reinterpret_cast<Pack16*>(raw + pitch * thread_index()), Pack16{{}});
}

TRECVIT_KERNEL(32) void misaligned_global(Plan p) {
  store16(p.out + 4 * thread_index() + (p.correct ? 0 : 1), load16(p.in));
}

TRECVIT_KERNEL(32) void shared_as_global(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  store_shared(reinterpret_cast<Pack16*>(raw) + thread_index(), Pack16{{}});
  p.out[thread_index()] = float(load16(p.correct ? static_cast<const void*>(p.in) : raw).words[0]);
}

TRECVIT_KERNEL(32) void too_much_static(Plan p) {
  if (p.correct) return;
  TRECVIT_SHARED(char, many, 49 * 1024);
  store_shared(&many[thread_index()], char(0));
}

// ---- Asynchronous copies -------------------------------------------------------------------------------------------

TRECVIT_KERNEL(64) void unwaited_copy(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* mine = reinterpret_cast<Pack16*>(raw) + thread_index();
  copy_async16(mine, p.in + 4 * thread_index());
  commit_copies();
  if (p.correct) wait_copies<0>();
  p.out[thread_index()] = bits_to_float(load_shared(mine).words[0]);
  wait_copies<0>();
}

TRECVIT_KERNEL(64) void uncommitted_copy(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  float* mine = reinterpret_cast<float*>(raw) + thread_index();
  copy_async_small<4>(mine, p.in + thread_index());
  if (p.correct) commit_copies();
  wait_copies<0>();
  p.out[thread_index()] = load_shared(mine);
}

// Three stages under way; the oldest is read.
TRECVIT_KERNEL(64) void waited_for_too_few(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* mine = reinterpret_cast<Pack16*>(raw) + 3 * thread_index();
  for (int stage = 0; stage < 3; ++stage) {
    copy_async16(mine + stage, p.in + 4 * thread_index());
    commit_copies();
  }
  if (p.correct) {
    wait_copies<2>();
  } else {
    wait_copies<3>();
  }
  p.out[thread_index()] = bits_to_float(load_shared(mine).words[0]);
  wait_copies<0>();
}

// wait_copies is for a thread's own copies; for those of others it takes a barrier behind it.
TRECVIT_KERNEL(64) void copy_of_another_thread(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* packs = reinterpret_cast<Pack16*>(raw);
  store_shared(packs + thread_index(), Pack16{{}});
  sync_block();
  copy_async16(packs + thread_index(), p.in, thread_index() % 2 == 0);
  commit_copies();
  wait_copies<0>();
  if (p.correct) sync_block();
  p.out[thread_index()] = bits_to_float(load_shared(packs + (thread_index() ^ 32)).words[0]);
}

TRECVIT_KERNEL(64) void barrier_before_wait(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* packs = reinterpret_cast<Pack16*>(raw);
  copy_async16(packs + thread_index(), p.in);
  commit_copies();
  if (!p.correct) sync_block();
  wait_copies<0>();
  if (p.correct) sync_block();
  p.out[thread_index()] = bits_to_float(load_shared(packs + (thread_index() ^ 32)).words[0]);
}

TRECVIT_KERNEL(64) void write_into_a_copy(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* mine = reinterpret_cast<Pack16*>(raw) + thread_index();
  copy_async16(mine, p.in);
  commit_copies();
  if (p.correct) wait_copies<0>();
  store_shared(&mine->words[3], 0u);
  wait_copies<0>();
}

// The next copy into a buffer that others may still be reading.
TRECVIT_KERNEL(64) void copy_over_readers(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  Pack16* packs = reinterpret_cast<Pack16*>(raw);
  for (int round = 0; round < 2; ++round) {
    copy_async16(packs + thread_index(), p.in);
    commit_copies();
    wait_copies<0>();
    sync_block();
    p.out[thread_index()] += bits_to_float(load_shared(packs + (thread_index() ^ 32)).words[0]);
    if (p.correct) sync_block();
  }
}

TRECVIT_KERNEL(32) void copies_left_under_way(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  copy_async16(reinterpret_cast<Pack16*>(raw) + thread_index(), p.in);
  commit_copies();
  if (p.correct) wait_copies<0>();
}

TRECVIT_KERNEL(32) void misaligned_copy(Plan p) {
  TRECVIT_DYNAMIC_SHARED(raw);
  copy_async16(reinterpret_cast<Pack16*>(raw) + thread_index(), p.in + (p.correct ? 0 : 2));
  commit_copies();
  wait_copies<0>();
}

const Fault kFaults[] = {
    TRECVIT_FAULT(uninitialised_read, 1, 32, 0),        TRECVIT_FAULT(partly_uninitialised_read, 1, 32, 512),
    TRECVIT_FAULT(left_by_the_block_before, 2, 32, 0),  TRECVIT_FAULT(out_of_bounds_read, 1, 32, 0),
    TRECVIT_FAULT(out_of_bounds_write, 1, 32, 128),     TRECVIT_FAULT(misaligned_shared, 1, 32, 1024),
    TRECVIT_FAULT(misaligned_global, 1, 32, 0),         TRECVIT_FAULT(shared_as_global, 1, 32, 512),
    TRECVIT_FAULT(too_much_static, 1, 32, 0),           TRECVIT_FAULT(unwaited_copy, 1, 64, 1024),
    TRECVIT_FAULT(uncommitted_copy, 1, 64, 256),        TRECVIT_FAULT(waited_for_too_few, 1, 64, 3072),
    TRECVIT_FAULT(copy_of_another_thread, 1, 64, 1024), TRECVIT_FAULT(barrier_before_wait, 1, 64, 1024),
    TRECVIT_FAULT(write_into_a_copy, 1, 64, 1024),      TRECVIT_FAULT(copy_over_readers, 1, 64, 1024),
    TRECVIT_FAULT(copies_left_under_way, 1, 32, 512),   TRECVIT_FAULT(misaligned_copy, 1, 32, 512),
};

}  // namespace

void bind_memory_faults(pybind11::module_& m) {
  for (const Fault& fault : kFaults) define(m, fault);
}

}  // namespace trecvit::faults
