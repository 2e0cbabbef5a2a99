// The block that runs: its threads, and who waits for whom. One block at a time per OS thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/async_copy.h"
#include "kernels/simt/executor.h"
#include "kernels/simt/fiber.h"
#include "kernels/simt/mbarrier.h"
#include "kernels/simt/policy.h"
#include "kernels/simt/site.h"
#include "kernels/simt/thread.h"
#include "kernels/simt/wgmma.h"

namespace lapidary::simt {

inline constexpr int kLanes = 32;
inline constexpr int kMaxBlockThreads = 1024;
inline constexpr int kBarriers = 16;

struct ThreadState : Thread {
  Fiber fiber;
  CopyQueue copies;
  WgmmaQueue products;
};

// Lanes of a warp that meet at one operation. The last to arrive does it for all.
using Completion = void (*)(void** operand, uint32_t lanes, Site site);
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Site site;
  Completion complete = nullptr;
  bool aligned = false;  // for the whole warp: no lane may exit instead
};

struct WarpState {
  uint32_t ready = 0, live = 0;  // lanes
  void* operand[kLanes] = {};
  Meeting whole;       // of every live lane: the usual case
  Meeting partial[8];  // of some
  int open_partial = 0;
};

struct BarrierState {
  uint32_t arrived = 0, wanted = 0;  // threads; wanted 0: all that live
  Site site;
  std::vector<uint32_t> arrivals, waiters;
  struct WarpPart {
    uint32_t lanes = 0;
    Site site;
  };
  std::vector<WarpPart> warps;  // named barriers only
  int votes = 0, result = 0;    // __syncthreads_count: of this phase, of the last
};

struct BlockState : Block {
  std::vector<ThreadState> threads;
  std::vector<WarpState> warps;
  BarrierState barriers[kBarriers];
  MbarrierTable mbarriers;
  WarpgroupState warpgroups[kMaxBlockThreads / 128];
  struct Variable {
    const void* key;
    size_t offset;
  };
  std::vector<Variable> variables;  // static shared memory

  uint32_t thread_count = 0, live = 0;
  uint32_t ready_warps = 0;
  int64_t spins = 0;  // since something last made progress
  bool abandoned = false;
  Order order = Order::kForward;  // the policy's, of this launch
  Random random;
  Fiber scheduler;
  FiberStacks stacks{kMaxBlockThreads};
  const KernelBody* body = nullptr;

  ThreadState& Self() { return static_cast<ThreadState&>(*current_thread); }
  WarpState& OwnWarp() { return warps[current_thread->warp]; }
};

BlockState& CurrentBlock();

// The thread that runs stops being runnable until Wake names it.
void Suspend();
void Wake(uint32_t thread);
void WakeLanes(uint32_t warp, uint32_t lanes);
// A mistake after which the block cannot go on: its threads are never resumed.
[[noreturn]] void FailBlock(Site site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
[[noreturn]] void AbandonBlock();
// Lets others run; too many in a row without progress is a livelock.
void YieldSpinning();
inline void MadeProgress() { CurrentBlock().spins = 0; }

}  // namespace lapidary::simt
