// Shared memory of the SIMT harness, and the copies into it.
//
// The block's memory is one arena: a margin, the dynamic shared memory, then each static array behind a gap. Every byte
// has a state and remembers who wrote it last and who read it since, as (thread, time). Time counts the meetings of the
// launch: what a warp did before time t is before what another does now if a chain of barriers leads from there to
// here, and `known[here][there]` is the time of the last such barrier. Whatever is not so ordered, with a write among
// it, is a race. Two readers are remembered, of different warps: enough for barriers of the whole block; with named
// barriers a third reader may be forgotten, another order of threads then keeps another.
#include "machine.h"

namespace trecvit::simt {

namespace {

constexpr int64_t kMargin = 1040;          // dynamic shared memory is aligned to 16 bytes, and here to no more
constexpr int64_t kGap = 128;              // between arrays
constexpr int64_t kMaxBytes = 227 * 1024;  // of a block on sm_90
constexpr int64_t kMaxStatic = 48 * 1024;
constexpr int64_t kArena = kMargin + kMaxBytes + 64 * kGap;

enum State : uint8_t { kOutside, kPoisoned, kInFlight, kReady };

// time << 11 | several lanes of the warp << 10 | thread; zero: nobody.
using Event = uint32_t;
constexpr int kTimeShift = 11;
constexpr Event kSeveral = 1u << 10, kThreadMask = kSeveral - 1;
constexpr uint32_t kLastTime = (1u << (32 - kTimeShift)) - 1;

struct History {
  Event writer, reader[2];
};

struct Array {
  const char* name;
  int64_t begin, bytes;
};
std::vector<Array> arrays;  // of the launch; the first is the dynamic memory
int64_t used = 0;           // bytes of the arena

}  // namespace

struct SharedMemory {
  alignas(128) char arena[kArena];
  State state[kArena];
  History history[kArena];
  uint32_t now, known[kMaxWarps][kMaxWarps];
  uint64_t launch = 0;  // that `state` is of

  SharedMemory() { forget_history(); }

  void forget_history() {
    memset(history, 0, sizeof history);
    now = 1;
    for (auto& row : known) {
      for (uint32_t& time : row) time = 1;
    }
  }
  void step_time() {
    if (now == kLastTime) forget_history();
    ++now;
  }
  Event event_of(int thread) const { return now << kTimeShift | uint32_t(thread); }
  void poison(const Array& array) {
    memset(arena + array.begin, 0xff, size_t(array.bytes));  // NaN in every floating-point type
    memset(state + array.begin, kPoisoned, size_t(array.bytes));
  }
};

namespace {

SharedMemory& mine() { return *machine.block->shared; }

// Was `event` before what thread `me` of warp `warp` does now?
inline bool ordered(Event event, uint32_t me, const uint32_t (&known_here)[kMaxWarps]) {
  return (event >> kTimeShift) < known_here[(event & kThreadMask) / kLanes] || (event & (kSeveral | kThreadMask)) == me;
}

std::string describe_bytes(int64_t offset, int64_t bytes) {
  for (const Array& array : arrays) {
    if (offset < array.begin - kGap || offset >= array.begin + array.bytes + kGap) continue;
    return std::to_string(bytes) + " bytes at byte " + std::to_string(offset - array.begin) + " of " + array.name +
           " (" + std::to_string(array.bytes) + " bytes)";
  }
  return std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of shared memory";
}

std::string describe_event(Event event) {
  const int thread = int(event & kThreadMask);
  if (event & kSeveral) return "several lanes of warp " + std::to_string(thread / kLanes);
  return "thread " + std::to_string(thread);
}

// Offset in the arena of an access that is inside some array and aligned.
int64_t locate(const void* address, int64_t bytes, int alignment, const char* what, Place place) {
  const SharedMemory& s = mine();
  const int64_t offset = static_cast<const char*>(address) - s.arena;
  if (offset < 0 || offset + bytes > kArena) fail(place, "%s out of bounds: the address is not in shared memory", what);
  if (reinterpret_cast<uintptr_t>(address) % uintptr_t(alignment) != 0)
    fail(place, "misaligned %s: %s, which should be a multiple of %d", what, describe_bytes(offset, bytes).c_str(),
         alignment);
  for (int64_t i = offset; i < offset + bytes; ++i) {
    if (s.state[i] == kOutside) fail(place, "%s out of bounds: %s", what, describe_bytes(offset, bytes).c_str());
  }
  return offset;
}

[[noreturn]] void fail_race(const char* what, int64_t offset, int64_t bytes, const char* other, Event event,
                            Place place) {
  fail(place, "race: %s of %s, without a barrier after the %s by %s", what, describe_bytes(offset, bytes).c_str(),
       other, describe_event(event).c_str());
}

[[noreturn]] void fail_in_flight(const char* what, int64_t at, int64_t offset, int64_t bytes, Place place) {
  fail(place,
       "%s of %s while the asynchronous copy of %s into it is under way: wait_copies is missing or covers "
       "too few groups",
       what, describe_bytes(offset, bytes).c_str(), describe_event(mine().history[at].writer).c_str());
}

// Checks a write and enters it in the history.
void enter_write(int64_t offset, int64_t bytes, State becomes, const char* what, Place place) {
  SharedMemory& s = mine();
  const uint32_t me = uint32_t(where.thread);
  const auto& known_here = s.known[me / kLanes];
  const Event event = s.event_of(where.thread);
  for (int64_t i = offset; i < offset + bytes; ++i) {
    History& h = s.history[i];
    if (s.state[i] == kInFlight) fail_in_flight(what, i, offset, bytes, place);
    if (!ordered(h.writer, me, known_here)) fail_race(what, offset, bytes, "write", h.writer, place);
    for (const Event reader : h.reader) {
      if (!ordered(reader, me, known_here)) fail_race(what, offset, bytes, "read", reader, place);
    }
    h = {event, {0, 0}};
    s.state[i] = becomes;
  }
}

// Enters a reader in one of the two places: in that of an earlier one, or of another lane of its warp.
inline void enter_reader(Event (&readers)[2], Event event, const uint32_t (&known_here)[kMaxWarps]) {
  for (Event& reader : readers) {
    if (reader == event) return;
    if (ordered(reader, event & kThreadMask, known_here)) {
      reader = event;
      return;
    }
    if ((reader & kThreadMask) / kLanes == (event & kThreadMask) / kLanes) {
      reader |= kSeveral;
      return;
    }
  }
}

void perform(const Copy& copy) {
  SharedMemory& s = mine();
  const int64_t offset = copy.to - s.arena;
  if (copy.from) {
    memcpy(copy.to, copy.from, size_t(copy.bytes));
  } else {
    memset(copy.to, 0, size_t(copy.bytes));
  }
  const Event event = s.event_of(where.thread);
  for (int64_t i = offset; i < offset + copy.bytes; ++i) {
    s.history[i] = {event, {0, 0}};
    s.state[i] = kReady;
  }
}

int64_t add_array(const char* name, int64_t bytes) {
  const int64_t begin = arrays.empty() ? kMargin : (used + kGap + 15) / 16 * 16;
  if (begin + bytes + kGap > kArena) return -1;
  arrays.push_back({name, begin, bytes});
  for (auto& block : machine.residents) {
    if (block && block->running) block->shared->poison(arrays.back());
  }
  used = begin + bytes;
  return begin;
}

}  // namespace

void begin_launch(int64_t dynamic_bytes) {
  arrays.clear();
  used = 0;
  if (dynamic_bytes < 0 || dynamic_bytes > kMaxBytes) {
    report(-1, std::to_string(dynamic_bytes) + " bytes of dynamic shared memory are more than a block may have", {});
    return;
  }
  add_array("dynamic shared memory", dynamic_bytes);
}

void begin_block(Block& block) {
  if (!block.shared) block.shared = std::make_shared<SharedMemory>();
  SharedMemory& s = *block.shared;
  if (s.now > kLastTime / 2) s.forget_history();
  s.step_time();
  for (auto& row : s.known) {
    for (uint32_t& time : row) time = s.now;
  }
  if (s.launch != machine.launch) memset(s.state, kOutside, sizeof s.state);
  s.launch = machine.launch;
  for (const Array& array : arrays) s.poison(array);
}

void order_warps(uint32_t warps) {
  SharedMemory& s = mine();
  s.step_time();
  uint32_t merged[kMaxWarps] = {};  // of warps that this launch does not have, too: their past is still in the history
  for (uint32_t rest = warps; rest; rest &= rest - 1) {
    const auto& row = s.known[__builtin_ctz(rest)];
    for (int w = 0; w < kMaxWarps; ++w) merged[w] = merged[w] > row[w] ? merged[w] : row[w];
  }
  for (uint32_t rest = warps; rest; rest &= rest - 1) merged[__builtin_ctz(rest)] = s.now;
  for (uint32_t rest = warps; rest; rest &= rest - 1) memcpy(s.known[__builtin_ctz(rest)], merged, sizeof merged);
}

void* static_shared(StaticShared& array) {
  if (array.launch != machine.launch) {
    array.offset = add_array(array.name, array.bytes);
    int64_t total = 0;
    for (size_t i = 1; i < arrays.size(); ++i) total += (arrays[i].bytes + 15) / 16 * 16;
    if (array.offset < 0 || total > kMaxStatic || total + arrays[0].bytes > kMaxBytes)
      fail({}, "%s: more shared memory than a block may have", array.name);
    array.launch = machine.launch;
  }
  return mine().arena + array.offset;
}

char* dynamic_shared() { return mine().arena + kMargin; }

void read_shared(const void* from, int bytes, int alignment, Place place) {
  ++machine.statistics.shared_reads;
  const int64_t offset = locate(from, bytes, alignment, "read", place);
  SharedMemory& s = mine();
  const uint32_t me = uint32_t(where.thread);
  const auto& known_here = s.known[me / kLanes];
  const Event event = s.event_of(where.thread);
  for (int64_t i = offset; i < offset + bytes; ++i) {
    History& h = s.history[i];
    if (s.state[i] != kReady) {
      if (s.state[i] == kInFlight) fail_in_flight("read", i, offset, bytes, place);
      fail(place, "read of uninitialised shared memory: %s", describe_bytes(offset, bytes).c_str());
    }
    if (!ordered(h.writer, me, known_here)) fail_race("read", offset, bytes, "write", h.writer, place);
    enter_reader(h.reader, event, known_here);
  }
}

void write_shared(const void* to, int bytes, int alignment, Place place) {
  ++machine.statistics.shared_writes;
  enter_write(locate(to, bytes, alignment, "write", place), bytes, kReady, "write", place);
}

void check_global(const void* address, int alignment, const char* what, Place place) {
  const int64_t offset = static_cast<const char*>(address) - mine().arena;
  if (offset >= 0 && offset < kArena) fail(place, "%s of shared memory: it is for global memory", what);
  if (reinterpret_cast<uintptr_t>(address) % uintptr_t(alignment) != 0)
    fail(place, "misaligned %s: %p should be a multiple of %d", what, address, alignment);
}

void copy_async(void* to, const void* from, int bytes, bool valid, Place place) {
  ++machine.statistics.copies;
  check_global(from, bytes, "source of an asynchronous copy", place);
  const int64_t offset = locate(to, bytes, bytes, "asynchronous copy", place);
  enter_write(offset, bytes, kInFlight, "asynchronous copy", place);
  memset(to, 0xff, size_t(bytes));  // until it is waited for
  Thread& thread = my_thread();
  thread.copies.push_back(
      {static_cast<char*>(to), valid ? static_cast<const char*>(from) : nullptr, bytes, thread.group, place});
}

void commit_copies() { ++my_thread().group; }

void wait_copies(int groups) {
  Thread& thread = my_thread();
  size_t done = 0;
  while (done < thread.copies.size() && thread.copies[done].group + uint32_t(groups) < thread.group)
    perform(thread.copies[done++]);
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + long(done));
}

void end_thread() {
  const Thread& thread = my_thread();
  if (!thread.copies.empty())
    fail(thread.copies[0].place, "the thread ended with asynchronous copies under way, the oldest of %s",
         describe_bytes(thread.copies[0].to - mine().arena, thread.copies[0].bytes).c_str());
}

}  // namespace trecvit::simt
