#include "kernels/simt/wgmma.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/shared_memory.h"
#include "kernels/simt/warp.h"

namespace lapidary::simt {
namespace {

constexpr int kThreads = 128, kRows = 64, kMostColumns = 128, kDepth = 16;
constexpr uint64_t kSwizzle128 = 1;

// An operand as [k][row].
using Operand = float[kDepth][kMostColumns];
void ReadOperand(const BlockState& b, uint64_t descriptor, int rows, Site site, Operand out) {
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const uint32_t offset = OperandOffset(descriptor, row, k);
      if (offset + 2 > b.shared_used) {
        Fail(site, "wgmma: an operand ends outside the block's shared memory");
        return;
      }
      uint16_t bits;
      memcpy(&bits, b.shared + offset, sizeof bits);
      const uint32_t wide = uint32_t{bits} << 16;
      memcpy(&out[k][row], &wide, sizeof wide);
    }
  }
}

// Accumulator j of thread i of the group is element (Row, Column).
int Row(int i, int j) { return i / 32 * 16 + i % 32 / 4 + j / 2 % 2 * 8; }
int Column(int i, int j) { return j / 4 * 8 + i % 4 * 2 + j % 2; }

// On the heap: a library that is loaded at run time gets little thread-local storage.
struct Workspace {
  alignas(32) Operand a, bt;
  alignas(32) float d[kRows][kMostColumns];
};

// `held(i)`: the accumulators of thread i.
template <class Held>
void Multiply(const BlockState& b, const WarpgroupProduct& p, Held held) {
  static thread_local const auto workspace = std::make_unique<Workspace>();
  auto& [a, bt, d] = *workspace;
  const int columns = p.columns();
  ReadOperand(b, p.a, kRows, p.site, a);
  ReadOperand(b, p.b, columns, p.site, bt);
  for (int i = 0; i < kThreads; ++i) {
    const float* x = held(i);
    for (int j = 0; j < p.held; ++j) d[Row(i, j)][Column(i, j)] = x[j];
  }
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < columns; ++n) d[m][n] += a[k][m] * bt[k][n];
    }
  }
  for (int i = 0; i < kThreads; ++i) {
    float* x = held(i);
    for (int j = 0; j < p.held; ++j) x[j] = d[Row(i, j)][Column(i, j)];
  }
}

WgmmaQueue::Accumulators* FindPending(WgmmaQueue& q, const float* d) {
  for (WgmmaQueue::Accumulators& p : q.pending) {
    if (p.d == d) return &p;
  }
  return nullptr;
}

ThreadState& Member(BlockState& b, uint32_t group, int i) {
  return b.threads[group * kThreads + i];
}

void Finish(BlockState& b, uint32_t group, WarpgroupProduct& p) {
  if (p.done) return;
  p.done = true;
  Multiply(b, p,
           [&](int i) { return FindPending(Member(b, group, i).products, p.d[i])->value.data(); });
}

bool AllNan(const float* d, int held) {
  for (int j = 0; j < held; ++j) {
    if (!std::isnan(d[j])) return false;
  }
  return true;
}

}  // namespace

uint32_t OperandOffset(uint64_t descriptor, int row, int k) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t linear = start + row / 8 * stride + row % 8 * 128 + k * 2;
  return linear ^ (linear >> 7 & 7) << 4;
}

uint64_t MakeDescriptor(const void* tile, uint32_t stride_bytes, Site site) {
  const auto offset = static_cast<const unsigned char*>(tile) - CurrentBlock().shared;
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(kArenaBytes)) {
    FailBlock(site, "wgmma descriptor: the tile is not in shared memory");
  }
  if (offset % 16 != 0) Fail(site, "wgmma descriptor: the tile is not aligned to 16");
  return static_cast<uint64_t>(offset & 0x3ffff) >> 4 | uint64_t{1} << 16 |
         uint64_t{stride_bytes >> 4} << 32 | kSwizzle128 << 62;
}

void FenceProducts() { CurrentBlock().Self().products.fenced = true; }

void MultiplyWarpgroup(float* d, int held, uint64_t a, uint64_t b, Site site) {
  BlockState& block = CurrentBlock();
  ThreadState& self = block.Self();
  const uint32_t group = self.linear / kThreads;
  if ((group + 1) * kThreads > block.thread_count) {
    FailBlock(site, "wgmma: the thread is not in a whole warpgroup");
  }
  if (a >> 62 != kSwizzle128 || b >> 62 != kSwizzle128) {
    FailBlock(site, "wgmma: only the 128-byte swizzle is modelled");
  }
  WarpgroupState& state = block.warpgroups[group];
  WgmmaQueue& own = self.products;
  WgmmaQueue::Accumulators* pending = FindPending(own, d);
  if (!pending && !own.fenced) {
    Fail(site, "wgmma: WgmmaFence is missing before the accumulators' first use");
  }

  WarpgroupProduct& meeting = state.meeting;
  if (state.arrived == 0) {
    meeting.a = a;
    meeting.b = b;
    meeting.held = held;
    meeting.site = site;
    meeting.done = false;
  } else if (!(meeting.site == site)) {
    FailBlock(site, "wgmma: other threads of the warpgroup are at %s", At(meeting.site).text);
  } else if (meeting.a != a || meeting.b != b) {
    FailBlock(site, "wgmma: the descriptors differ between threads of the warpgroup");
  }
  const int place = static_cast<int>(self.linear % kThreads);
  meeting.d[place] = d;
  const bool lazy = CurrentPolicy().lazy;
  if (lazy) {
    if (!pending) {
      own.pending.push_back({d, {}, held, 0});
      pending = &own.pending.back();
      memcpy(pending->value.data(), d, held * sizeof *d);
      memset(d, 0xff, held * sizeof *d);
    }
    pending->last = own.issued;
  }
  ++own.issued;
  if (++state.arrived < kThreads) {
    Suspend();
    return;
  }
  state.arrived = 0;
  if (monitor) monitor->OnProductIssue(group, state.products.size(), meeting);
  state.products.push_back(meeting);
  if (!lazy) {
    state.products.back().done = true;
    Multiply(block, meeting, [&](int i) { return meeting.d[i]; });
  }
  for (uint32_t w = group * 4; w < group * 4 + 4; ++w) WakeLanes(w, 0xffffffffu);
}

void CommitProducts() {
  WgmmaQueue& q = CurrentBlock().Self().products;
  q.group_end.push_back(q.issued);
}

namespace {

void FinishWait(BlockState& b, ThreadState& self, int pending, Site site) {
  WgmmaQueue& q = self.products;
  if (q.group_end.size() <= static_cast<size_t>(pending)) return;
  const size_t groups = q.group_end.size() - static_cast<size_t>(pending);
  const size_t end = q.group_end[groups - 1];
  q.group_end.erase(q.group_end.begin(), q.group_end.begin() + static_cast<ptrdiff_t>(groups));
  if (end == q.waited) return;
  const uint32_t group = self.linear / kThreads;
  WarpgroupState& state = b.warpgroups[group];
  for (size_t i = q.waited; i < end; ++i) {
    if (CurrentPolicy().lazy) Finish(b, group, state.products[i]);
    if (monitor) monitor->OnProductWait(self.linear, i, state.products[i]);
  }
  q.waited = end;
  for (size_t i = 0; i < q.pending.size();) {
    WgmmaQueue::Accumulators& p = q.pending[i];
    if (p.last >= end) {
      ++i;
      continue;
    }
    if (!AllNan(p.d, p.held))
      Fail(site, "wgmma: accumulators were written while a product was under way");
    memcpy(p.d, p.value.data(), p.held * sizeof *p.d);
    p = q.pending.back();
    q.pending.pop_back();
  }
  q.fenced = false;
}

}  // namespace

// One instruction of the whole warp: once a lane has waited, all have.
void WaitProducts(int pending, Site site) {
  MeetWarp(site, &pending, [](void** pending_of, uint32_t, Site where) {
    BlockState& b = CurrentBlock();
    const uint32_t first = current_thread->warp * kLanes;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      FinishWait(b, b.threads[first + lane], *static_cast<int*>(pending_of[lane]), where);
    }
  });
}

void CheckProductsAtExit(ThreadState& thread) {
  const WgmmaQueue& q = thread.products;
  if (q.waited < q.issued) {
    Fail(CurrentBlock().warpgroups[thread.linear / kThreads].meeting.site,
         "wgmma: the thread ends and has not waited for its products");
  }
}

}  // namespace lapidary::simt
