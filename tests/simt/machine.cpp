// The scheduler of the SIMT harness, and its launch.
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>

#include <mutex>

__asm__(TRECVIT_SIMT_SWITCH);

namespace trecvit::simt {

Where where;
Machine machine;

namespace {

uint64_t next_random() {  // splitmix64
  uint64_t z = machine.random += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Where a fibre begins: it runs its thread and goes back for good.
void entry() {
  begun_from(machine.scheduler);
  machine.body(machine.arguments);
  end_thread();
  Warp& warp = my_warp();
  const uint32_t bit = 1u << my_lane();
  if (warp.waiting) {
    fail({}, "divergence: the thread ended while %s at %s",
         describe_threads(where.thread / kLanes, warp.waiting).c_str(), describe(warp.meeting).c_str());
  }
  warp.finished |= bit;
  Thread& thread = my_thread();
  machine.free_stacks.push_back(thread.stack);
  thread.stack = nullptr;
  switch_to(thread.context, machine.scheduler, true);
}

void resume(Block& block, int index) {
  Thread& thread = block.thread[index];
  Warp& warp = block.warp[index / kLanes];
  const uint32_t bit = 1u << (index % kLanes);
  warp.ready &= ~bit;
  where.thread = index;
  if (!(warp.started & bit)) {
    warp.started |= bit;
    thread.polled = nullptr;
    if (machine.free_stacks.empty()) {
      machine.stacks.push_back(std::make_unique<Stack>(machine.stacks.size()));
      machine.free_stacks.push_back(machine.stacks.back().get());
    }
    thread.stack = machine.free_stacks.back();
    machine.free_stacks.pop_back();
    thread.context = thread.stack->begin(entry);
  }
  ++machine.statistics.switches;
  switch_to(machine.scheduler, thread.context);
}

enum class Turn { kWent, kWaits, kStands, kEnded };

// Lets threads go on whose flag has come.
Turn release_flagged(Block& block) {
  Turn turn = Turn::kStands;
  for (int w = 0; w < machine.warps; ++w) {
    Warp& warp = block.warp[w];
    for (uint32_t lanes = warp.flagged; lanes; lanes &= lanes - 1) {
      if (turn == Turn::kStands) turn = Turn::kWaits;
      const int lane = __builtin_ctz(lanes);
      const Thread& thread = block.thread[w * kLanes + lane];
      if (thread.flag && *static_cast<const volatile uint32_t*>(thread.flag) != thread.flag_value) continue;
      warp.flagged &= ~(1u << lane);
      warp.ready |= 1u << lane;
      turn = Turn::kWent;
    }
  }
  return turn;
}

void report_standstill(const Block& block) {
  where.block = block.index;
  std::string waiting;
  int finished = 0, spinning = -1;
  for (int w = 0; w < machine.warps; ++w) {
    const Warp& warp = block.warp[w];
    finished += __builtin_popcount(warp.finished);
    if (warp.waiting)
      waiting += (waiting.empty() ? "" : "; ") + describe_threads(w, warp.waiting) + " at " + describe(warp.meeting);
    if (warp.flagged && spinning < 0) spinning = w * kLanes + __builtin_ctz(warp.flagged);
  }
  if (spinning < 0) {
    waiting += "; " + std::to_string(finished) + " threads have ended";
    report(-1, "divergent barrier: nobody can go on: " + waiting, {});
    return;
  }
  const Thread& thread = block.thread[spinning];
  report(spinning,
         "wait_for a flag that nobody sets: it is " + std::to_string(*thread.flag) + ", not " +
             std::to_string(thread.flag_value) + ", and whoever is there waits too",
         thread.flag_place);
}

// Lets one warp of a block go on.
Turn take_turn(Block& block) {
  const bool permuted = machine.seed != 0;
  // The first that can or, permuted, any.
  const int offset = permuted ? int(next_random() % uint64_t(machine.warps)) : 0;
  int chosen = -1;
  bool ended = true;
  for (int i = 0; i < machine.warps && chosen < 0; ++i) {
    const int w = i + offset < machine.warps ? i + offset : i + offset - machine.warps;
    if (block.warp[w].ready) chosen = w;
    ended = ended && block.warp[w].finished == kAllLanes;
  }
  if (chosen < 0) return ended ? Turn::kEnded : release_flagged(block);
  // One round of its lanes: i -> (i factor + shift) ^ flip takes each number once, since the factor is odd.
  const uint64_t draw = permuted ? next_random() : 0;
  const int factor = int(draw & 31) | 1, shift = int(draw >> 5 & 31), flip = int(draw >> 10 & 31);
  machine.block = &block;
  where.block = block.index;
  Warp& warp = block.warp[chosen];
  const uint32_t round = warp.ready;
  for (int i = 0; i < kLanes && !machine.failed; ++i) {
    const int lane = ((i * factor + shift) & 31) ^ flip;
    if (round & warp.ready & (1u << lane)) resume(block, chosen * kLanes + lane);
  }
  return Turn::kWent;
}

void begin(Block& block, int64_t index) {
  block.index = index;
  block.running = true;
  for (int w = 0; w < machine.warps; ++w) {
    Warp& warp = block.warp[w];
    warp.ready = kAllLanes;
    warp.started = warp.waiting = warp.finished = warp.flagged = 0;
  }
  for (Barrier& barrier : block.barrier) barrier = {};
  begin_block(block);
  ++machine.statistics.blocks;
  machine.statistics.threads += uint64_t(machine.warps * kLanes);
}

// A one-to-one map of block numbers as that of lanes, of the smallest power of two that holds them; numbers beyond are
// skipped.
int64_t permuted_block(int64_t& at, int64_t blocks, uint64_t draw) {
  uint64_t size = 1;
  while (int64_t(size) < blocks) size *= 2;
  for (;;) {
    const uint64_t block = ((uint64_t(at++) * (draw | 1) + (draw >> 20)) ^ (draw >> 40)) & (size - 1);
    if (int64_t(block) < blocks) return int64_t(block);
  }
}

// Runs all blocks, so many at once.
void run_blocks(int64_t blocks, uint64_t residents) {
  const uint64_t draw = machine.seed ? next_random() : 0;
  int64_t at = 0, begun = 0, ended = 0;
  uint64_t waiting = 0;  // turns in a row in which nobody went on
  for (uint64_t turn = 0; ended < blocks && !machine.failed; ++turn) {
    // In turn while all wait, so that each is asked once.
    Block& block = *machine.residents[(waiting || residents == 1 ? turn : next_random()) % residents];
    if (!block.running) {
      if (begun == blocks) {
        waiting += waiting != 0;
        continue;
      }
      begin(block, machine.seed ? permuted_block(at, blocks, draw) : begun);
      ++begun;
    }
    switch (take_turn(block)) {
      case Turn::kWent: waiting = 0; break;
      case Turn::kEnded:
        block.running = false;
        ++ended;
        waiting = 0;
        break;
      case Turn::kWaits:
        if (++waiting > 2 * residents) report_standstill(block);
        break;
      case Turn::kStands: report_standstill(block); break;
    }
  }
}

}  // namespace

void suspend() { switch_to(my_thread().context, machine.scheduler); }

void set_order(uint64_t seed) { machine.seed = seed; }

void fail(Place place, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  report(where.thread, text, place);
  suspend();  // for good: the launch is over
  __builtin_unreachable();
}

const char* run(const char* name, int64_t blocks, int threads, int64_t shared_bytes, void (*body)(const void*),
                const void* arguments) {
  static std::mutex one_at_a_time;
  static thread_local std::string text;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (machine.recording) {
    machine.recorded.push_back({name, blocks, threads, shared_bytes});
    return nullptr;
  }
  machine.name = name;
  machine.failed = false;
  machine.error.clear();
  machine.body = body;
  machine.arguments = arguments;
  machine.random = machine.seed;
  ++machine.launch;
  where = {0, threads, 0, blocks};
  if (blocks < 0 || blocks > 0x7fffffff) {
    report(-1, "a grid of " + std::to_string(blocks) + " blocks", {});
  } else if (threads < kLanes || threads > kMaxThreads || threads % kLanes != 0) {
    report(-1, "a block of " + std::to_string(threads) + " threads: it must be a multiple of 32, at most 1024", {});
  } else {
    machine.warps = threads / kLanes;
    begin_launch(shared_bytes);
    ++machine.statistics.launches;
    const uint64_t residents = machine.seed ? 1 + machine.seed % kResidents : 1;
    for (uint64_t i = 0; i < residents; ++i) {
      if (!machine.residents[i]) machine.residents[i] = std::make_unique<Block>();
    }
    run_blocks(blocks, residents);
  }
  if (!machine.failed) return nullptr;
  for (auto& block : machine.residents) {  // what the fault left in the middle of something
    if (!block) continue;
    block->running = false;
    for (Thread& thread : block->thread) {
      if (thread.stack) machine.free_stacks.push_back(thread.stack);
      thread.stack = nullptr;
      thread.copies.clear();
    }
  }
  text = machine.error;
  return text.c_str();
}

}  // namespace trecvit::simt
