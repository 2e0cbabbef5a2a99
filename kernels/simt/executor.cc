// Which thread runs next, blocks and grids, and what happens when nobody can run.
#include "kernels/simt/executor.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>

#include "kernels/simt/barriers.h"
#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/fault.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/report.h"
#include "kernels/simt/shared_memory.h"
#include "kernels/simt/spin.h"
#include "kernels/simt/warp.h"

namespace lapidary::simt {

thread_local constinit Thread* current_thread = nullptr;
Monitor* monitor = nullptr;

namespace {

constexpr int64_t kMostSpins = 4'000'000;
constexpr uint32_t kSpinTurns = 64;  // atomic operations that count as one wait

thread_local BlockState* current_block = nullptr;

void SetReady(BlockState& b, uint32_t warp, uint32_t lanes) {
  b.warps[warp].ready |= lanes;
  b.ready_warps |= 1u << warp;
}

void ClearReady(BlockState& b, uint32_t warp, uint32_t lanes) {
  if ((b.warps[warp].ready &= ~lanes) == 0) b.ready_warps &= ~(1u << warp);
}

// Bits above (below) position i.
uint32_t Above(uint32_t bits, uint32_t i) { return i < 31 ? bits & ~((2u << i) - 1) : 0; }
uint32_t Below(uint32_t bits, uint32_t i) { return bits & ((1u << i) - 1); }
uint32_t Lowest(uint32_t bits) { return static_cast<uint32_t>(__builtin_ctz(bits)); }
uint32_t Highest(uint32_t bits) { return 31 - static_cast<uint32_t>(__builtin_clz(bits)); }

// The runnable thread that follows lane `lane` of warp `warp` in the policy's order; null: none.
ThreadState* PickNext(BlockState& b, uint32_t warp, uint32_t lane) {
  if (b.ready_warps == 0) return nullptr;
  const Order order = b.order;
  if (order == Order::kRandom && (b.random.Next() & 7) == 0) {
    warp = b.random.Below(b.warps.size());
    lane = b.random.Below(kLanes);
  }
  uint32_t next;
  if (order == Order::kReverse) {
    next = Below(b.warps[warp].ready, lane);
    if (next) return &b.threads[warp * kLanes + Highest(next)];
    const uint32_t lower = Below(b.ready_warps, warp);
    warp = Highest(lower ? lower : b.ready_warps);
    return &b.threads[warp * kLanes + Highest(b.warps[warp].ready)];
  }
  next = Above(b.warps[warp].ready, lane);
  if (next) return &b.threads[warp * kLanes + Lowest(next)];
  const uint32_t higher = Above(b.ready_warps, warp);
  warp = Lowest(higher ? higher : b.ready_warps);
  return &b.threads[warp * kLanes + Lowest(b.warps[warp].ready)];
}

void SwitchTo(BlockState& b, ThreadState* from, ThreadState* to) {
  current_thread = to;
  SwitchFiber(from ? &from->fiber : &b.scheduler, to ? &to->fiber : &b.scheduler);
}

// Leaves the block for good: its threads are never resumed.
[[noreturn]] void Abandon(BlockState& b) {
  b.abandoned = true;
  ThreadState& self = b.Self();
  self.fiber.finished = true;
  SwitchTo(b, &self, nullptr);
  __builtin_unreachable();
}

void ReportDeadlock(BlockState& b, const char* what) {
  Fail({}, "%s: %u of %u threads live%s%s%s", what, b.live, b.thread_count,
       DescribeBarriers(b).c_str(), DescribeMeetings(b).c_str(), DescribeMbarriers(b).c_str());
}

void RunNext(BlockState& b) {
  ThreadState& self = b.Self();
  ThreadState* next = PickNext(b, self.warp, self.lane);
  if (next == &self) return;
  if (!next) {
    ReportDeadlock(b, "deadlock");
    Abandon(b);
  }
  SwitchTo(b, &self, next);
}

void ThreadMain() {
  FiberEntered();
  BlockState& b = *current_block;
  b.body->run(b.body->call.get());
  ThreadState& self = b.Self();
  self.copies.FinishAll();
  CheckProductsAtExit(self);
  --b.live;
  ClearReady(b, self.warp, 1u << self.lane);
  b.warps[self.warp].live &= ~(1u << self.lane);
  LeaveMeetings();
  LeaveBarriers();
  MadeProgress();
  self.fiber.finished = true;
  ThreadState* next = PickNext(b, self.warp, self.lane);
  if (!next && b.live > 0) {
    ReportDeadlock(b, "deadlock");
    b.abandoned = true;
  }
  SwitchTo(b, &self, next);
  __builtin_unreachable();
}

void PrepareThreads(BlockState& b, const Grid& grid) {
  const dim3 size = grid.threads;
  b.thread_count = size.x * size.y * size.z;
  b.threads.resize(std::max<size_t>(b.threads.size(), b.thread_count));
  b.warps.resize((b.thread_count + kLanes - 1) / kLanes);
  for (uint32_t i = 0; i < b.thread_count; ++i) {
    ThreadState& t = b.threads[i];
    t.index = uint3{i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    t.linear = i;
    t.lane = i % kLanes;
    t.warp = i / kLanes;
    t.block = &b;
    t.fiber.stack = b.stacks.Stack(static_cast<int>(i));
  }
}

void RunBlock(BlockState& b, uint3 index, size_t shared_limit) {
  b.index = index;
  b.live = b.thread_count;
  b.ready_warps = 0;
  b.spins = 0;
  b.abandoned = false;
  ResetShared(b);
  ResetBarriers(b);
  b.mbarriers.Reset();
  for (WarpgroupState& g : b.warpgroups) g.Reset();
  for (WarpState& w : b.warps) {
    w.ready = w.live = 0;
    w.open_partial = 0;
    w.whole.arrived = 0;
    for (Meeting& m : w.partial) m.arrived = 0;
  }
  for (uint32_t i = 0; i < b.thread_count; ++i) {
    ThreadState& t = b.threads[i];
    t.copies.Reset();
    t.products.Reset();
    StartFiber(&t.fiber, static_cast<int>(i), &ThreadMain);
    SetReady(b, t.warp, 1u << t.lane);
    b.warps[t.warp].live |= 1u << t.lane;
  }
  if (monitor) monitor->BlockBegin();
  const Order order = b.order;
  const uint32_t first = order == Order::kForward   ? 0
                         : order == Order::kReverse ? b.thread_count - 1
                                                    : b.random.Below(b.thread_count);
  SwitchTo(b, nullptr, &b.threads[first]);
  current_thread = nullptr;
  if (!b.abandoned) {
    b.mbarriers.CheckAtBlockEnd();
    if (b.shared_used > shared_limit) {
      Fail({}, "kernel %s: %zu bytes of shared memory with the static part, the chip has %zu",
           b.kernel, b.shared_used, shared_limit);
    }
  }
  if (monitor) monitor->BlockEnd();
}

// The k-th block to run: a walk with a step that meets every block once.
uint64_t RandomStep(Random& random, uint64_t blocks) {
  if (blocks < 3) return 1;
  uint64_t step = 1 + random.Next() % (blocks - 1);
  while (std::gcd(step, blocks) != 1) ++step;
  return step;
}

}  // namespace

BlockState& CurrentBlock() { return *current_block; }

void Suspend() {
  BlockState& b = *current_block;
  ClearReady(b, current_thread->warp, 1u << current_thread->lane);
  RunNext(b);
}

void Wake(uint32_t thread) { SetReady(*current_block, thread / kLanes, 1u << thread % kLanes); }

void WakeLanes(uint32_t warp, uint32_t lanes) { SetReady(*current_block, warp, lanes); }

void FailBlock(Site site, const char* format, ...) {
  char what[1000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  Fail(site, "%s", what);
  Abandon(*current_block);
}

void YieldSpinning() {
  BlockState& b = *current_block;
  if (++b.spins > kMostSpins) {
    ReportDeadlock(b, "livelock: threads spin and nothing makes progress");
    Abandon(b);
  }
  RunNext(b);
}

void SpinOnce() { YieldSpinning(); }

void PauseForPeers() {
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  RunNext(*current_block);
}

uint64_t HostNanoseconds() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}

void NoteSpin() {
  static thread_local uint32_t turns = 0;
  if (++turns % kSpinTurns != 0) return;
  current_block->spins += kSpinTurns - 1;
  YieldSpinning();
}

void StopBlock(Site site) { FailBlock(site, "__trap"); }

void StopMisaligned(const void* p, size_t bytes, Site site) {
  FailBlock(site, "misaligned access of %zu bytes at %p", bytes, p);
}

void StopOutside(size_t offset, size_t bytes, Site site) {
  FailBlock(site, "access of %zu bytes at %zu of %zu bytes of shared memory", bytes, offset,
            current_block->shared_used);
}

void AbandonBlock() { Abandon(*current_block); }

void RunGrid(const Grid& grid, const KernelBody& body) {
  static thread_local std::unique_ptr<BlockState> own;
  if (!own) own = std::make_unique<BlockState>();
  CatchFaults();
  BlockState& b = *own;
  current_block = &b;
  b.random = Random(CurrentPolicy().seed);
  b.order = CurrentPolicy().order;
  b.kernel = grid.name.c_str();
  b.size = grid.threads;
  b.grid = grid.blocks;
  b.dynamic_bytes = grid.dynamic_bytes;
  b.body = &body;
  b.parameters = static_cast<const unsigned char*>(body.call.get());
  b.parameter_bytes = body.call_bytes;
  b.bytes_read = b.bytes_written = 0;
  PrepareThreads(b, grid);
  if (monitor) monitor->LaunchBegin(b.kernel);
  const uint64_t blocks = uint64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  const Order order = b.order;
  const uint64_t step = order == Order::kRandom ? RandomStep(b.random, blocks) : 1;
  const int failures = FailureCount();
  uint64_t ran = 0;
  for (uint64_t i = 0; ran < blocks && FailureCount() == failures; ++ran, i = (i + step) % blocks) {
    const uint64_t j = order == Order::kReverse ? blocks - 1 - i : i;
    RunBlock(b,
             uint3{static_cast<unsigned>(j % grid.blocks.x),
                   static_cast<unsigned>(j / grid.blocks.x % grid.blocks.y),
                   static_cast<unsigned>(j / grid.blocks.x / grid.blocks.y)},
             grid.shared_limit);
  }
  if (monitor) monitor->LaunchEnd();
  CountLaunch(b, ran);
  current_thread = nullptr;
  current_block = nullptr;
}

}  // namespace lapidary::simt
