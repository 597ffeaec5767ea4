// Faults in what orders threads: barriers, warps, flags.
#include "faults.h"

namespace trecvit::faults {
namespace {

using namespace gpu;

// So that what is read too early was written before.
TRECVIT_DEVICE void clear(float* values, int count) {
  for (int i = thread_index(); i < count; i += block_threads()) store_shared(&values[i], 0.0f);
  sync_block();
}

// ---- Barriers ------------------------------------------------------------------------------------------------------

TRECVIT_KERNEL(128) void missing_sync_block(Plan p) {
  TRECVIT_SHARED(float, values, 128);
  const int i = thread_index();
  clear(values, 128);
  store_shared(&values[i], p.in[i]);
  if (p.correct) sync_block();
  p.out[i] = load_shared(&values[127 - i]);
}

// The barrier at the end of a loop: the next round overwrites what others still read.
TRECVIT_KERNEL(128) void missing_second_sync_block(Plan p) {
  TRECVIT_SHARED(float, values, 128);
  const int i = thread_index();
  for (int round = 0; round < 3; ++round) {
    store_shared(&values[i], p.in[i]);
    sync_block();
    p.out[i] += load_shared(&values[(i + 32) % 128]);
    if (p.correct) sync_block();
  }
}

TRECVIT_KERNEL(64) void missing_sync_warp(Plan p) {
  TRECVIT_SHARED(float, values, 64);
  const int i = thread_index();
  clear(values, 64);
  store_shared(&values[i], p.in[i]);
  if (p.correct) sync_warp();
  p.out[i] = load_shared(&values[i ^ 1]);
}

// A shuffle makes lanes meet but orders no memory.
TRECVIT_KERNEL(32) void shuffle_for_sync_warp(Plan p) {
  TRECVIT_SHARED(float, values, 32);
  const int i = thread_index();
  store_shared(&values[i], p.in[i]);
  p.out[i] = shuffle_xor(p.in[i], 1);
  if (p.correct) sync_warp();
  p.out[i] += load_shared(&values[i ^ 1]);
}

TRECVIT_KERNEL(128) void warp_skips_barrier(Plan p) {
  if (p.correct || thread_index() < 96) sync_block();
  p.out[thread_index()] = 1;
}

TRECVIT_KERNEL(128) void lanes_skip_barrier(Plan p) {
  if (p.correct || thread_index() % 32 < 31) sync_block();
  p.out[thread_index()] = 1;
}

TRECVIT_KERNEL(128) void early_end(Plan p) {
  if (!p.correct && thread_index() >= 100) return;
  sync_block();
  p.out[thread_index()] = 1;
}

TRECVIT_KERNEL(128) void two_barriers(Plan p) {
  if (p.correct || thread_index() < 64) {
    sync_block();
  } else {
    sync_block();
  }
  p.out[thread_index()] = 1;
}

// Two groups of two warps, each with a barrier of its own.
TRECVIT_KERNEL(128) void named_barrier_waits_for_too_many(Plan p) {
  TRECVIT_SHARED(float, values, 128);
  const int i = thread_index();
  for (int round = 0; round < 3; ++round) {
    store_shared(&values[i], p.in[i]);
    sync_named(1 + i / 64, p.correct ? 64 : 96);
    p.out[i] += load_shared(&values[i ^ 63]);
    sync_named(1 + i / 64, p.correct ? 64 : 96);
  }
}

TRECVIT_KERNEL(128) void named_barrier_waits_for_too_few(Plan p) {
  TRECVIT_SHARED(float, values, 128);
  const int i = thread_index();
  clear(values, 128);
  store_shared(&values[i], p.in[i]);
  sync_named(1, p.correct ? 128 : 64);
  for (int other = 32; other < 128; other += 32) p.out[i] += load_shared(&values[(i + other) % 128]);
}

TRECVIT_KERNEL(128) void named_barrier_of_two_counts(Plan p) {
  sync_named(3, p.correct || thread_index() < 64 ? 128 : 64);
  p.out[thread_index()] = 1;
}

// ---- Races ---------------------------------------------------------------------------------------------------------

TRECVIT_KERNEL(64) void race_between_warps(Plan p) {
  TRECVIT_SHARED(float, sums, 2);
  const int warp = thread_index() / 32;
  if (thread_index() % 32 == 0) store_shared(&sums[p.correct ? warp : 0], p.in[warp]);
  sync_block();
  p.out[thread_index()] = load_shared(&sums[0]);
}

TRECVIT_KERNEL(32) void race_within_a_warp(Plan p) {
  TRECVIT_SHARED(float, sums, 32);
  sync_block();
  store_shared(&sums[p.correct ? thread_index() : thread_index() / 2], p.in[0]);
  sync_warp();
  p.out[thread_index()] = load_shared(&sums[0]);
}

// Reads first, then a write by one: the same fault as above seen from the other side.
TRECVIT_KERNEL(128) void write_after_read(Plan p) {
  TRECVIT_SHARED(float, value, 1);
  if (thread_index() == 0) store_shared(&value[0], 1.0f);
  sync_block();
  p.out[thread_index()] = load_shared(&value[0]);
  if (p.correct) sync_block();
  if (thread_index() == 77) store_shared(&value[0], 2.0f);
}

// All lanes read; which was the last does not matter.
TRECVIT_KERNEL(32) void write_after_read_in_a_warp(Plan p) {
  TRECVIT_SHARED(float, value, 1);
  clear(value, 1);
  p.out[thread_index()] = load_shared(&value[0]);
  if (p.correct) sync_warp();
  if (thread_index() == 31) store_shared(&value[0], 2.0f);
}

// Warps 0 and 1 hand over by a named barrier; warp 2 is not part of it.
TRECVIT_KERNEL(96) void handed_over_to_others(Plan p) {
  TRECVIT_SHARED(float, value, 1);
  const int warp = thread_index() / 32;
  clear(value, 1);
  if (thread_index() == 0) store_shared(&value[0], 1.0f);
  if (p.correct || warp < 2) sync_named(1, p.correct ? 96 : 64);
  p.out[thread_index()] = load_shared(&value[0]);
}

// ---- Warps and flags -----------------------------------------------------------------------------------------------

TRECVIT_KERNEL(32) void divergent_shuffle(Plan p) {
  const int i = thread_index();
  float sum = p.in[i];
  if (p.correct || i < 16) sum += shuffle_xor(sum, 1);
  p.out[i] = sum + shuffle_xor(sum, 16);
}

TRECVIT_KERNEL(32) void shuffle_without_some(Plan p) {
  const int i = thread_index();
  p.out[i] = 0;
  if (p.correct || i % 2 == 0) p.out[i] = shuffle(p.in[i], 0);
}

TRECVIT_KERNEL(32) void flag_that_never_comes(Plan p) {
  if (thread_index() == 0) wait_for(&p.flags[0], p.correct ? 0 : 1);
  sync_warp();
  p.out[thread_index()] = 1;
}

TRECVIT_KERNEL(32) void spin_by_hand(Plan p) {
  while (load_published(&p.flags[0]) == (p.correct ? 1u : 0u)) {
  }
}

// Each block waits for the one before it. Blocks come in any order, so which that is must be told by a counter.
TRECVIT_KERNEL(32) void order_by_block_index(Plan p) {
  if (thread_index() == 0) {
    const uint32_t ticket = p.correct ? atomic_add(&p.flags[63], 1) : uint32_t(block_index());
    if (ticket > 0) wait_for(&p.flags[ticket - 1], 1);
    publish(&p.flags[ticket], 1);
  }
}

const Fault kFaults[] = {
    TRECVIT_FAULT(missing_sync_block, 2, 128, 0),
    TRECVIT_FAULT(missing_second_sync_block, 2, 128, 0),
    TRECVIT_FAULT(missing_sync_warp, 2, 64, 0),
    TRECVIT_FAULT(shuffle_for_sync_warp, 1, 32, 0),
    TRECVIT_FAULT(warp_skips_barrier, 1, 128, 0),
    TRECVIT_FAULT(lanes_skip_barrier, 1, 128, 0),
    TRECVIT_FAULT(early_end, 1, 128, 0),
    TRECVIT_FAULT(two_barriers, 1, 128, 0),
    TRECVIT_FAULT(named_barrier_waits_for_too_many, 1, 128, 0),
    TRECVIT_FAULT(named_barrier_waits_for_too_few, 1, 128, 0),
    TRECVIT_FAULT(named_barrier_of_two_counts, 1, 128, 0),
    TRECVIT_FAULT(race_between_warps, 1, 64, 0),
    TRECVIT_FAULT(race_within_a_warp, 1, 32, 0),
    TRECVIT_FAULT(write_after_read, 1, 128, 0),
    TRECVIT_FAULT(write_after_read_in_a_warp, 1, 32, 0),
    TRECVIT_FAULT(handed_over_to_others, 1, 96, 0),
    TRECVIT_FAULT(divergent_shuffle, 1, 32, 0),
    TRECVIT_FAULT(shuffle_without_some, 1, 32, 0),
    TRECVIT_FAULT(flag_that_never_comes, 1, 32, 0),
    TRECVIT_FAULT(spin_by_hand, 1, 32, 0),
    TRECVIT_FAULT(order_by_block_index, 32, 32, 0),
};

}  // namespace

void bind_order_faults(pybind11::module_& m) {
  for (const Fault& fault : kFaults) define(m, fault);
}

}  // namespace trecvit::faults
