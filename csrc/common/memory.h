// Memory of large outputs: mapped once, backed by huge pages, kept and handed out again.
//
// A fresh output of megabytes costs more in page faults than the kernel that fills it. The C library gives such memory
// back to the system when it is freed, so that the next call pays again; here it stays, up to a limit.
#pragma once

#include <stdint.h>

namespace trecvit {

// Aligned memory of at least `bytes`, contents undefined. Throws std::bad_alloc. Thread-safe, as all below.
void* acquire_memory(int64_t bytes);

// Gives back what acquire_memory returned.
void release_memory(void* data);

// Bytes that may be kept for later; more is returned to the system, now and at every release.
void limit_kept_memory(int64_t bytes);

struct MemoryUse {
  int64_t used, kept;  // bytes in live outputs, and kept for later ones
};
MemoryUse memory_use();

}  // namespace trecvit
