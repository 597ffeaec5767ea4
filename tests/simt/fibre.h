// Threads of execution that switch by a handful of instructions: a stack and where it stands. The C library's ucontext
// makes a system call at each switch, and a kernel switches millions of times.
#pragma once

#include <stddef.h>
#include <sys/mman.h>

#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TRECVIT_SIMT_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define TRECVIT_SIMT_ASAN
#endif
#if defined(TRECVIT_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the running context's registers on its stack and its stack pointer in *from; goes on where `to` was left.
extern "C" void trecvit_simt_switch(void** from, void* to);

#if defined(__x86_64__)
#define TRECVIT_SIMT_SWITCH                                                            \
  ".text\n.globl trecvit_simt_switch\n.type trecvit_simt_switch,@function\n"           \
  "trecvit_simt_switch:\n"                                                             \
  "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"            \
  "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"                                                \
  "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"            \
  ".size trecvit_simt_switch,.-trecvit_simt_switch\n"
#elif defined(__aarch64__)
#define TRECVIT_SIMT_SWITCH                                                            \
  ".text\n.globl trecvit_simt_switch\n.type trecvit_simt_switch,%function\n"           \
  "trecvit_simt_switch:\n"                                                             \
  "sub sp, sp, #160\n"                                                                 \
  "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"           \
  "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"      \
  "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"                                 \
  "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"                              \
  "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"                                           \
  "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n"           \
  "ldp x25, x26, [sp, #48]\n ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"      \
  "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"                                 \
  "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"                              \
  "add sp, sp, #160\n ret\n"                                                           \
  ".size trecvit_simt_switch,.-trecvit_simt_switch\n"
#else
#error "The SIMT harness switches stacks on x86-64 and aarch64 only"
#endif

namespace trecvit::simt {

// Where a thread of execution stands that is not running; AddressSanitizer wants to know its stack, too.
struct Context {
  void* sp = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

inline void switch_to(Context& from, Context& to, [[maybe_unused]] bool for_good = false) {
#if defined(TRECVIT_SIMT_ASAN)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  trecvit_simt_switch(&from.sp, to.sp);
#if defined(TRECVIT_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// To be called first on a new stack, with the context that switched to it.
inline void begun_from([[maybe_unused]] Context& from) {
#if defined(TRECVIT_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#endif
}

// A stack with a guard page below it. Memory is taken by the system page by page, as it is touched.
class Stack {
 public:
  explicit Stack(size_t index) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    base_ = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
    // Stacks that begin at the same offset in a page would fight for the same lines of the cache.
    top_ = base_ + kBytes - 320 * (index % 12);
  }
  ~Stack() { munmap(base_, kBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // A context on this stack that begins with entry(), which must not return.
  Context begin(void (*entry)()) const {
    char* const bottom = base_ + kGuard;
#if defined(TRECVIT_SIMT_ASAN)
    __asan_unpoison_memory_region(bottom, kBytes - kGuard);  // of frames that were left for good
#endif
    void** sp = reinterpret_cast<void**>(top_);
#if defined(__x86_64__)
    *--sp = nullptr;  // where entry() would return to; it also aligns the stack as a call does
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
#else
    sp -= 20;
    for (int i = 0; i < 20; ++i) sp[i] = nullptr;
    sp[11] = reinterpret_cast<void*>(entry);  // x30
#endif
    return {sp, bottom, kBytes - kGuard, nullptr};
  }

 private:
  static constexpr size_t kBytes = 256 * 1024, kGuard = 64 * 1024;  // a multiple of every page size
  char *base_, *top_;
};

}  // namespace trecvit::simt
