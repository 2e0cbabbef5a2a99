#include "kernels/simt/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#ifdef LAPIDARY_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the SIMT executor's fibers are written for x86-64"
#endif

extern "C" void lapidary_simt_switch(void** save, void* load);
asm(R"(
.text
.hidden lapidary_simt_switch
.globl lapidary_simt_switch
.type lapidary_simt_switch,@function
lapidary_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size lapidary_simt_switch,.-lapidary_simt_switch
)");

namespace lapidary::simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPitch = kStackBytes + kPage;

thread_local Fiber* switched_from = nullptr;

}  // namespace

FiberStacks::~FiberStacks() {
  if (slab_) munmap(slab_, most_ * kPitch);
}

unsigned char* FiberStacks::Stack(int i) {
  if (!slab_) {
    void* slab = mmap(nullptr, most_ * kPitch, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) {
      perror("[simt] stacks");
      abort();
    }
    slab_ = static_cast<unsigned char*>(slab);
  }
  for (; guarded_ <= i; ++guarded_) mprotect(slab_ + guarded_ * kPitch, kPage, PROT_NONE);
  return slab_ + i * kPitch + kPage;
}

bool FiberStacks::Contains(const void* p) const {
  return slab_ && p >= slab_ && p < slab_ + most_ * kPitch;
}

void StartFiber(Fiber* fiber, int color, void (*entry)()) {
#ifdef LAPIDARY_SIMT_ASAN
  __asan_unpoison_memory_region(fiber->stack, kStackBytes);
#endif
  fiber->finished = false;
  fiber->fake_stack = nullptr;
  fiber->bottom = fiber->stack;
  fiber->size = kStackBytes;
  // Stacks lie a whole number of pages apart: without an offset of its own each one's hot lines
  // would share one set of the cache.
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - (color * 448 & 0xfc0));
  *--top = nullptr;  // keeps the alignment a call would leave
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->stack_pointer = top;
}

void SwitchFiber(Fiber* from, Fiber* to) {
  switched_from = from;
#ifdef LAPIDARY_SIMT_ASAN
  __sanitizer_start_switch_fiber(from->finished ? nullptr : &from->fake_stack, to->bottom,
                                 to->size);
#endif
  lapidary_simt_switch(&from->stack_pointer, to->stack_pointer);
#ifdef LAPIDARY_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void FiberEntered() {
#ifdef LAPIDARY_SIMT_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!switched_from->stack) {  // the OS thread's stack: only now are its bounds known
    switched_from->bottom = bottom;
    switched_from->size = size;
  }
#endif
}

}  // namespace lapidary::simt
