#include "memory.h"

#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#define TRECVIT_HAS_MMAP 1
#else
#define TRECVIT_HAS_MMAP 0
#endif

namespace trecvit {
namespace {

constexpr int64_t kHugePage = int64_t(1) << 21;
constexpr int64_t kGranule = int64_t(1) << 16;  // sizes are multiples of it, so that similar ones share memory

void* map(int64_t bytes) {
#if TRECVIT_HAS_MMAP
  // One huge page more than asked for, then cut to a huge page's boundary.
  char* raw = static_cast<char*>(mmap(nullptr, size_t(bytes + kHugePage), PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t address = reinterpret_cast<uintptr_t>(raw);
  char* data = raw + ((address + kHugePage - 1) / kHugePage * kHugePage - address);
  if (data != raw) munmap(raw, size_t(data - raw));
  char *end = data + bytes, *raw_end = raw + bytes + kHugePage;
  if (end != raw_end) munmap(end, size_t(raw_end - end));
#if defined(MADV_HUGEPAGE)
  madvise(data, size_t(bytes), MADV_HUGEPAGE);  // a hint: failure is not an error
#endif
  return data;
#else
  return ::operator new(size_t(bytes), std::align_val_t(64));
#endif
}

void unmap(void* data, int64_t bytes) {
#if TRECVIT_HAS_MMAP
  munmap(data, size_t(bytes));
#else
  (void)bytes;
  ::operator delete(data, std::align_val_t(64));
#endif
}

class Cache {
 public:
  Cache() {
#if TRECVIT_HAS_MMAP
    // A child forked while another thread holds the lock must not wait for it forever.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  // Never destroyed: outputs may outlive the interpreter's modules.
  static Cache& instance() {
    static Cache* const cache = new Cache;
    return *cache;
  }

  void* acquire(int64_t bytes) {
    bytes = (bytes + kGranule - 1) / kGranule * kGranule;
    const std::lock_guard<std::mutex> lock(mutex_);
    // The smallest that fits, unless an eighth of it or more would lie idle.
    const auto found = kept_.lower_bound(bytes);
    void* data;
    if (found != kept_.end() && found->first - bytes <= found->first / 8) {
      bytes = found->first;
      data = found->second;
      kept_.erase(found);
      use_.kept -= bytes;
    } else {
      data = map(bytes);
    }
    live_[data] = bytes;
    use_.used += bytes;
    return data;
  }

  void release(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(data);
    if (found == live_.end()) return;
    const int64_t bytes = found->second;
    live_.erase(found);
    use_.used -= bytes;
    if (bytes > limit_) return unmap(data, bytes);
    kept_.emplace(bytes, data);
    use_.kept += bytes;
    trim(data);
  }

  void limit(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    trim(nullptr);
  }

  MemoryUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use_;
  }

 private:
  // Largest first, `newest` last: what was released just now is what the next call asks for.
  void trim(const void* newest) {
    while (use_.kept > limit_) {
      auto victim = std::prev(kept_.end());
      if (victim->second == newest && victim != kept_.begin()) --victim;
      unmap(victim->second, victim->first);
      use_.kept -= victim->first;
      kept_.erase(victim);
    }
  }

  std::mutex mutex_;
  std::multimap<int64_t, void*> kept_;
  std::unordered_map<void*, int64_t> live_;
  MemoryUse use_ = {0, 0};
  int64_t limit_ = int64_t(1) << 30;
};

}  // namespace

void* acquire_memory(int64_t bytes) { return Cache::instance().acquire(bytes); }
void release_memory(void* data) { Cache::instance().release(data); }
void limit_kept_memory(int64_t bytes) { Cache::instance().limit(bytes < 0 ? 0 : bytes); }
MemoryUse memory_use() { return Cache::instance().use(); }

}  // namespace trecvit
