// The checker's view of mbarriers, bulk copies and warpgroup products.
#include <algorithm>
#include <cstring>

#include "kernels/simt/checker/checker.h"
#include "kernels/simt/checker/places.h"
#include "kernels/simt/failure.h"

namespace lapidary::simt {

void BlockChecker::RefreshMbarrier(MbarrierClock& m) {
  if (m.generation == races_.clocks().generation()) return;
  m.generation = races_.clocks().generation();
  m.arriving.reset();  // what they held is known to all by now
  m.completed.reset();
}

BlockChecker::MbarrierClock& BlockChecker::ClockOf(const void* barrier, uint32_t* agent) {
  for (size_t i = 0; i < mbarriers_.size(); ++i) {
    if (mbarriers_[i].address != barrier) continue;
    *agent = races_.clocks().MbarrierAgent(static_cast<uint32_t>(i));
    RefreshMbarrier(mbarriers_[i]);
    return mbarriers_[i];
  }
  FailBlock({}, "the checker does not know this mbarrier");
}

void BlockChecker::OnMbarrierInit(void* barrier, uint32_t place) {
  if (mbarriers_.size() == kMaxMbarriers) FailBlock({}, "more than %u mbarriers", kMaxMbarriers);
  mbarriers_.push_back({.address = barrier});
  OnAccess(barrier, 8, {current_thread->linear, place, Access::kWrite});
}

void BlockChecker::OnMbarrierUse(void* barrier, uint32_t place) {
  OnAccess(barrier, 8, {current_thread->linear, place, Access::kAtomic});
}

void BlockChecker::OnMbarrierArrive(void* barrier) {
  uint32_t agent;
  races_.clocks().Release(current_thread->linear, &ClockOf(barrier, &agent).arriving);
}

void BlockChecker::OnMbarrierPhase(const void* barrier) {
  uint32_t agent;
  MbarrierClock& m = ClockOf(barrier, &agent);
  m.completed = m.arriving ? std::make_shared<Clock>(*m.arriving) : races_.clocks().NewClock();
  m.completed->Raise(agent, m.epoch);
  if (m.arriving) m.arriving->Raise(agent, m.epoch);
}

void BlockChecker::OnMbarrierAcquire(void* barrier) {
  uint32_t agent;
  races_.clocks().Acquire(current_thread->linear, ClockOf(barrier, &agent).completed);
}

void BlockChecker::OnBulkDone(void* target, size_t bytes, const void* barrier) {
  uint32_t agent;
  MbarrierClock& m = ClockOf(barrier, &agent);
  OnCopyDone(static_cast<size_t>(static_cast<unsigned char*>(target) - block_->shared), bytes,
             agent, ++m.epoch);
}

void BlockChecker::OnProxyFence() {
  const uint32_t thread = current_thread->linear;
  ProxyFence& fence = proxy_fences_[thread];
  fence.generation = races_.clocks().generation();
  fence.epoch = races_.clocks().epoch(thread);
  fence.known = races_.clocks().Snapshot(thread);
}

// Whether what a thread wrote in the ordinary way has passed a proxy fence: the writer's own since,
// or one of the reading (or overwriting) warp's once it knew of the write.
bool BlockChecker::Fenced(const Cell& cell, uint32_t warp) {
  const PastAccess& w = cell.write;
  if (w.generation < races_.block_start() || w.agent >= block_->thread_count) return true;
  auto covers = [&](const ProxyFence& f) {
    return w.generation < f.generation ||
           (w.generation == f.generation && f.known && (*f.known)[w.agent] >= w.epoch);
  };
  if (covers(proxy_fences_[w.agent])) return true;
  const uint32_t last = std::min(warp * 32 + 32, block_->thread_count);
  for (uint32_t reader = warp * 32; reader < last; ++reader) {
    if (covers(proxy_fences_[reader])) return true;
  }
  return false;
}

// f(offset, first and last warp that reads it) for each 16-byte chunk of a product's operands: A's
// rows are those of one warp, B's of all four.
template <class F>
void BlockChecker::ForOperandChunks(const WarpgroupProduct& product, F f) {
  for (const bool is_b : {false, true}) {
    const uint32_t rows = is_b ? static_cast<uint32_t>(product.columns()) : 64;
    for (uint32_t row = 0; row < rows; ++row) {
      for (int k = 0; k < 16; k += 8) {
        const uint32_t offset =
            OperandOffset(is_b ? product.b : product.a, static_cast<int>(row), k);
        if (offset + 16 > block_->shared_used) continue;
        f(offset, is_b ? 0 : row / 16, is_b ? 3 : row / 16);
      }
    }
  }
}

template <class F>
void BlockChecker::ForChunkCells(uint32_t offset, F f) {
  ForCells(shared_[offset / 16], shared_cells_, races_.block_start(), races_.clocks().generation(),
           0, 16, f);
}

// A bulk copy writes through the async proxy: ordinary writes to the same bytes must have been
// fenced, or the two may land in either order.
void BlockChecker::OnBulkIssue(size_t offset, size_t bytes, uint32_t place) {
  const Accessor writer{current_thread->linear, place, Access::kWrite};
  for (size_t at = offset; at + 16 <= std::min(offset + bytes, block_->shared_used); at += 16) {
    ForChunkCells(static_cast<uint32_t>(at), [&](Cell& cell) {
      if (cell.in_flight || Fenced(cell, writer.thread / 32)) return;
      Report(writer, "FenceProxyAsync is missing between a write and the bulk copy over it");
    });
  }
  OnCopyIssue(offset, bytes, place);
}

// From now on the operands are being read. What was written must be known to some lane of each warp
// that reads: the instruction is one of the whole warp.
void BlockChecker::OnProductIssue(uint32_t group, const WarpgroupProduct& product) {
  const uint32_t place = PlaceId(product.site, nullptr);
  ForOperandChunks(product, [&](uint32_t offset, uint32_t first, uint32_t last) {
    ++read_by_products_[offset / 16];
    for (uint32_t warp = group * 4 + first; warp <= group * 4 + last; ++warp) {
      const Accessor reader{warp * 32, place, Access::kRead};
      for (size_t i = offset; i < offset + 16; ++i) {
        if (written_[i]) continue;
        Report(reader, Text("read of shared memory that nobody has written, at %zu", i));
        break;
      }
      ForChunkCells(offset, [&](Cell& cell) {
        if (cell.in_flight) {
          Report(reader, "race: read of bytes that an asynchronous copy still writes, by wgmma");
          return;
        }
        bool known = false;
        for (uint32_t lane = 0; lane < 32 && !known; ++lane) {
          known = races_.WriteIsKnown(cell, warp * 32 + lane);
        }
        if (!known) {
          Report(reader, Text("race: read of another thread's write without synchronisation, by "
                              "wgmma, shared memory at %u; the other: %s at %s",
                              offset, NameOf(cell.write.agent).c_str(),
                              PlaceName(cell.write.place).c_str()));
        } else if (!Fenced(cell, warp)) {
          Report(reader, "FenceProxyAsync is missing between a write and the wgmma that reads it");
        }
      });
    }
  });
  product_waits_[group].push_back(0);
}

// A thread that has waited knows that its warp's part is done; when all have, the reads are past.
void BlockChecker::OnProductWait(uint32_t thread, size_t index, const WarpgroupProduct& product) {
  VectorClocks& clocks = races_.clocks();
  const uint32_t group = thread / 128;
  const uint32_t epoch = static_cast<uint32_t>(index) + 1;
  clocks.Learn(thread, clocks.WarpAgent(thread / 32), epoch);
  if (++product_waits_[group][index] < 128) return;
  const uint32_t place = PlaceId(product.site, nullptr);
  ForOperandChunks(product, [&](uint32_t offset, uint32_t first, uint32_t last) {
    --read_by_products_[offset / 16];
    ForChunkCells(offset, [&](Cell& cell) {
      for (uint32_t warp = group * 4 + first; warp <= group * 4 + last; ++warp) {
        races_.ReadBy(cell, clocks.WarpAgent(warp), epoch, place);
      }
    });
  });
}

}  // namespace lapidary::simt
