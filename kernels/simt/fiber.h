// A CUDA thread's own stack, and the switch from one to another: callee-saved registers and the
// stack pointer. AddressSanitizer is told of each switch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lapidary::simt {

#if defined(__SANITIZE_ADDRESS__)
#define LAPIDARY_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LAPIDARY_SIMT_ASAN 1
#endif
#endif

#ifdef LAPIDARY_SIMT_ASAN
inline constexpr size_t kStackBytes = 256 << 10;
#else
inline constexpr size_t kStackBytes = 64 << 10;
#endif

struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // lowest byte; null for the OS thread's own
  bool finished = false;
  // AddressSanitizer's.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

// Stacks of `count` fibers, a guard page below each.
class FiberStacks {
 public:
  explicit FiberStacks(int most) : most_(most) {}
  ~FiberStacks();
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;

  unsigned char* Stack(int i);
  bool Contains(const void* p) const;

 private:
  const int most_;
  int guarded_ = 0;
  unsigned char* slab_ = nullptr;
};

// The next switch to `fiber` calls `entry`, which must not return.
void StartFiber(Fiber* fiber, int color, void (*entry)());
void SwitchFiber(Fiber* from, Fiber* to);
// First thing in an entry.
void FiberEntered();

}  // namespace lapidary::simt
