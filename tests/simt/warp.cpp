// What threads of a block do together: barriers, shuffles, votes; waiting for flags; and the wording of faults.
#include "machine.h"

namespace trecvit::simt {

const char* describe(Operation operation) {
  switch (operation) {
    case Operation::kBarrier: return "sync_block";
    case Operation::kSyncWarp: return "sync_warp";
    case Operation::kShuffle: return "shuffle";
    case Operation::kVote: return "ballot";
    case Operation::kLoadMatrix: return "load_matrix";
    case Operation::kMultiply: return "multiply_add";
    case Operation::kNone: break;
  }
  return "nothing";
}

std::string describe(const Place& place) {
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

std::string describe(const Meeting& meeting) {
  std::string text = describe(meeting.operation);
  if (meeting.operation == Operation::kBarrier && meeting.detail != 0)
    text = "sync_named(" + std::to_string(meeting.detail) + ", " + std::to_string(meeting.count) + ")";
  return text + " (" + describe(meeting.place) + ")";
}

std::string describe_threads(int warp, uint32_t lanes) {
  std::string text;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int last = lane;
    while (last + 1 < kLanes && (lanes >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(warp * kLanes + lane);
    if (last > lane) text += "-" + std::to_string(warp * kLanes + last);
    lane = last;
  }
  return (lanes & (lanes - 1) ? "threads " : "thread ") + text;
}

void report(int thread, const std::string& what, Place place) {
  if (machine.failed) return;
  machine.failed = true;
  machine.error = std::string(machine.name) + ": block " + std::to_string(where.block);
  if (thread >= 0)
    machine.error += ", thread " + std::to_string(thread) + " (warp " + std::to_string(thread / kLanes) + ", lane " +
                     std::to_string(thread % kLanes) + ")";
  machine.error += ": " + what;
  if (place.line) machine.error += " (" + describe(place) + ")";
}

bool arrive(Operation operation, int detail, int count, Place place) {
  Warp& warp = my_warp();
  const int number = where.thread / kLanes;
  const Meeting mine{operation, detail, count, place};
  if (warp.finished)
    fail({}, "divergence: at %s, where %s ended already", describe(mine).c_str(),
         describe_threads(number, warp.finished).c_str());
  if (warp.waiting) {
    const Meeting& other = warp.meeting;
    if (other.operation != operation || other.detail != detail || other.count != count ||
        other.place != place)
      fail({}, "divergence within a warp: at %s, while %s at %s", describe(mine).c_str(),
           describe_threads(number, warp.waiting).c_str(), describe(other).c_str());
  } else {
    warp.meeting = mine;
  }
  warp.waiting |= 1u << my_lane();
  if (warp.waiting == kAllLanes) return true;
  suspend();
  return false;
}

void depart() {
  Warp& warp = my_warp();
  warp.waiting = 0;
  warp.ready = kAllLanes & ~(1u << my_lane());
}

void barrier(int id, int threads, Place place) {
  if (threads <= 0 || threads % kLanes != 0 || threads > where.threads)
    fail(place, "barrier %d of %d threads in a block of %d", id, threads, where.threads);
  if (!arrive(Operation::kBarrier, id, threads, place)) return;
  // The last of a warp: is it the last of the barrier?
  Barrier& barrier = machine.block->barrier[id];
  const Meeting& mine = my_warp().meeting;
  const int number = where.thread / kLanes;
  if (barrier.warps) {
    const Meeting& other = barrier.meeting;
    const int first = __builtin_ctz(barrier.warps);
    if (other.count != threads || (id == 0 && other.place != place))
      fail({}, "divergent barrier: warp %d at %s, warp %d at %s", number, describe(mine).c_str(), first,
           describe(other).c_str());
  } else {
    barrier.meeting = mine;
  }
  barrier.warps |= 1u << number;
  if (__builtin_popcount(barrier.warps) * kLanes < threads) {
    suspend();
    return;
  }
  ++machine.statistics.barriers;
  order_warps(barrier.warps);
  for (uint32_t warps = barrier.warps; warps; warps &= warps - 1) {
    Warp& warp = machine.block->warp[__builtin_ctz(warps)];
    warp.waiting = 0;
    warp.ready = kAllLanes;
  }
  my_warp().ready &= ~(1u << my_lane());
  barrier.warps = 0;
}

void sync_warp(Place place) {
  if (!arrive(Operation::kSyncWarp, 0, 0, place)) return;
  ++machine.statistics.warp_operations;
  order_warps(1u << (where.thread / kLanes));
  depart();
}

void exchange(Shuffle kind, const void* value, void* result, int bytes, int argument, Place place) {
  const int lane = my_lane();
  Warp& warp = my_warp();
  int source = lane;
  switch (kind) {
    case Shuffle::kIndex: source = argument & 31; break;
    case Shuffle::kXor: source = lane ^ argument; break;
    case Shuffle::kUp: source = lane - argument; break;
    case Shuffle::kDown: source = lane + argument; break;
  }
  memcpy(warp.in[lane].bytes, value, size_t(bytes));
  warp.in[lane].source = source < 0 || source >= kLanes ? lane : source;
  if (arrive(Operation::kShuffle, int(kind), bytes, place)) {
    ++machine.statistics.warp_operations;
    for (int i = 0; i < kLanes; ++i) memcpy(warp.out[i].bytes, warp.in[warp.in[i].source].bytes, 16);
    depart();
  }
  memcpy(result, warp.out[lane].bytes, size_t(bytes));
}

uint32_t vote(bool condition, Place place) {
  const int lane = my_lane();
  Warp& warp = my_warp();
  warp.in[lane].source = condition;
  if (arrive(Operation::kVote, 0, 0, place)) {
    ++machine.statistics.warp_operations;
    uint32_t votes = 0;
    for (int i = 0; i < kLanes; ++i) votes |= uint32_t(warp.in[i].source) << i;
    for (Slot& slot : warp.out) memcpy(slot.bytes, &votes, sizeof votes);
    depart();
  }
  uint32_t votes;
  memcpy(&votes, warp.out[lane].bytes, sizeof votes);
  return votes;
}

void wait_for(const uint32_t* flag, uint32_t value, Place place) {
  check_global(flag, 4, "wait_for", place);
  if (*static_cast<const volatile uint32_t*>(flag) == value) return;
  Thread& thread = my_thread();
  thread.flag = flag;
  thread.flag_value = value;
  thread.flag_place = place;
  my_warp().flagged |= 1u << my_lane();
  suspend();
}

// A loop around load_published lets others go on now and then, and does not go on for ever.
void polled(const void* address, Place place) {
  Thread& thread = my_thread();
  if (thread.polled != address) {
    thread.polled = address;
    thread.polls = 0;
  }
  if (++thread.polls > 200000) fail(place, "load_published reads the same address for ever");
  if (thread.polls % 64 != 0) return;
  thread.flag = nullptr;
  my_warp().flagged |= 1u << my_lane();
  suspend();
}

}  // namespace trecvit::simt
