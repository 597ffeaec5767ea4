// The machine that the SIMT harness pretends to be.
//
// The threads of a block are fibres: each runs until it has to wait for others, at a barrier or at an operation of its
// warp; whoever arrives last does the work of the operation for all. In order 0 blocks run one after another; in most
// other orders a few are there at once and take turns, so that it shows when one publishes what is not complete yet, or
// reads what is not published yet. A kernel takes one core and, for a given seed, always the same course. The first
// fault ends the launch.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../../csrc/common/device.h"
#include "fibre.h"

namespace trecvit::simt {

constexpr int kLanes = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kLanes, kBarriers = 16;
constexpr uint64_t kResidents = 4;  // blocks at once, at most
constexpr uint32_t kAllLanes = 0xffffffffu;

// What lanes of a warp meet for. Lanes at different operations, or at different places, are a fault.
enum class Operation { kNone, kBarrier, kSyncWarp, kShuffle, kVote, kLoadMatrix, kMultiply };

struct Meeting {
  Operation operation = Operation::kNone;
  int detail = 0;  // id of a barrier, kind of a shuffle, ...
  int count = 0;   // threads of a barrier, bytes of a shuffle
  Place place;
};

// What a lane brings to an operation and takes from it.
struct Slot {
  alignas(16) unsigned char bytes[64];
  int source;
};

struct Warp {
  uint32_t ready = 0, started = 0, waiting = 0, finished = 0;
  uint32_t flagged = 0;  // lanes that wait for something in global memory
  Meeting meeting;
  Slot in[kLanes];
  Slot out[kLanes];
};

struct Copy {
  char* to;
  const char* from;  // null: zeros
  int bytes;
  uint32_t group;
  Place place;
};

struct Thread {
  Context context;
  Stack* stack = nullptr;
  std::vector<Copy> copies;  // under way
  uint32_t group = 0;        // that the next copy belongs to
  const uint32_t* flag = nullptr;  // null: polls by itself
  uint32_t flag_value = 0;
  Place flag_place;
  const void* polled = nullptr;
  uint32_t polls = 0;
};

struct Barrier {
  uint32_t warps = 0;  // those that wait
  Meeting meeting;
};

struct SharedMemory;  // shared.cpp

struct Block {
  int64_t index = 0;
  bool running = false;
  Warp warp[kMaxWarps];
  Thread thread[kMaxThreads];
  Barrier barrier[kBarriers];
  std::shared_ptr<SharedMemory> shared;
};

struct Statistics {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0, shared_reads = 0, shared_writes = 0, copies = 0,
           barriers = 0, warp_operations = 0, matrix_products = 0;
};

struct Launch {
  std::string name;
  int64_t blocks, threads, shared_bytes;  // dynamic shared memory of a block
};

struct Machine {
  bool recording = false;  // launches are listed instead of run
  std::vector<Launch> recorded;
  // The launch.
  const char* name = "";
  uint64_t launch = 0;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  bool failed = false;
  std::string error;
  int warps = 0;  // of a block
  // Blocks that are there, and the one whose thread runs.
  std::unique_ptr<Block> residents[kResidents];
  Block* block = nullptr;
  // Fibres.
  Context scheduler;
  std::vector<std::unique_ptr<Stack>> stacks;
  std::vector<Stack*> free_stacks;
  // The order in which threads go on.
  uint64_t seed = 0, random = 0;

  Statistics statistics;
};
extern Machine machine;

const char* describe(Operation operation);
std::string describe(const Place& place);
std::string describe(const Meeting& meeting);
std::string describe_threads(int warp, uint32_t lanes);  // "threads 32-63"

void set_order(uint64_t seed);

// Keeps a fault of the launch, unless there is one already; `thread` -1: of the block.
void report(int thread, const std::string& what, Place place);

// Of the running thread: waits until the scheduler lets it go on.
void suspend();
// Waits for the other lanes at an operation. True for the last to arrive, who has to do its work and call depart().
bool arrive(Operation operation, int detail, int count, Place place);
void depart();

inline Warp& my_warp() { return machine.block->warp[where.thread / kLanes]; }
inline int my_lane() { return where.thread % kLanes; }
inline Thread& my_thread() { return machine.block->thread[where.thread]; }

// Shared memory, in shared.cpp.
void begin_launch(int64_t dynamic_bytes);
void begin_block(Block& block);
void order_warps(uint32_t warps);  // what these did is before what they will do
void end_thread();                 // checks that no copies are under way

}  // namespace trecvit::simt
