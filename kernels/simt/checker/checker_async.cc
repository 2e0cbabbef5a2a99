// The checker's view of mbarriers, bulk copies and warpgroup products.
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
    *agent = block_->thread_count + static_cast<uint32_t>(i);
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
// or the reader's once it knew of the write.
bool BlockChecker::Fenced(const Cell& cell, uint32_t reader) {
  const PastAccess& w = cell.write;
  if (w.generation < races_.block_start() || w.agent >= block_->thread_count) return true;
  auto covers = [&](const ProxyFence& f) {
    return w.generation < f.generation ||
           (w.generation == f.generation && f.known && (*f.known)[w.agent] >= w.epoch);
  };
  if (covers(proxy_fences_[w.agent])) return true;
  const uint32_t first = reader / 32 * 32;
  for (uint32_t t = first; t < first + 32; ++t) {
    if (covers(proxy_fences_[t])) return true;
  }
  return false;
}

// f(offset, operand is B, row) for each 16-byte chunk that a product reads.
template <class F>
void BlockChecker::ForOperandChunks(const WarpgroupProduct& product, F f) {
  for (const bool is_b : {false, true}) {
    const int rows = is_b ? product.columns() : 64;
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < 16; k += 8) {
        const uint32_t offset = OperandOffset(is_b ? product.b : product.a, row, k);
        if (offset + 16 <= block_->shared_used) f(offset, is_b, row);
      }
    }
  }
}

void BlockChecker::OnProductIssue(uint32_t group, const WarpgroupProduct& product) {
  const uint32_t place = PlaceId(product.site, nullptr);
  ForOperandChunks(product, [&](uint32_t offset, bool is_b, int row) {
    for (uint32_t warp = 0; warp < 4; ++warp) {
      if (!is_b && warp != static_cast<uint32_t>(row) / 16) continue;
      const Accessor reader{group * 128 + warp * 32, place, Access::kRead};
      const Granule& g = shared_[offset / 16];
      if (g.generation >= races_.block_start()) {
        const Cell* cells = g.cell_log2 == 4 ? &g.whole : g.cells;
        for (int i = 0; i < 16 >> g.cell_log2; ++i) {
          if (Fenced(cells[i], reader.thread)) continue;
          Report(reader, "FenceProxyAsync is missing between a write and the wgmma that reads it");
          break;
        }
      }
      OnSharedAccess(offset, 16, reader);
    }
    ++read_by_products_[offset / 16];
  });
  product_waits_[group].push_back(0);
}

void BlockChecker::OnProductWait(uint32_t group, size_t index, const WarpgroupProduct& product) {
  if (++product_waits_[group][index] < 128) return;
  ForOperandChunks(product, [&](uint32_t offset, bool, int) { --read_by_products_[offset / 16]; });
}

}  // namespace lapidary::simt
