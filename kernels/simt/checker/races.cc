#include "kernels/simt/checker/races.h"

#include <algorithm>
#include <atomic>

namespace lapidary::simt {
namespace {

// Of the whole process, so that a cell of any memory tells its age by it.
uint32_t NextGeneration() {
  static std::atomic<uint32_t> last{0};
  return ++last;
}

}  // namespace

void Races::BeginLaunch() {
  launch_start_ = NextGeneration();
  block_start_ = launch_start_;
  released_.clear();
  acquired_.clear();
  own_.clear();
}

void Races::BeginBlock(uint32_t threads) {
  block_start_ = NextGeneration();
  for (const auto& r : own_) r->block_end = block_start_;
  own_.clear();
  acquired_.clear();
  fences_.assign(threads, {});
  any_fence_ = false;
  clocks_.BeginBlock(threads, block_start_);
  sets_.Begin(clocks_.agents());
}

void Races::BeginGeneration() {
  clocks_.BeginGeneration(NextGeneration());
  sets_.Clear();
}

bool Races::ReleasedToUs(const PastAccess& past) const {
  auto covers = [&](uint32_t generation, const SharedClock& known) {
    return past.generation < generation ||
           (past.generation == generation && known && (*known)[past.agent] >= past.epoch);
  };
  for (const auto& r : acquired_) {
    if (past.generation < r->block_start || past.generation >= r->block_end) continue;
    if (!covers(r->generation, r->known)) continue;
    if (covers(r->fence.generation, r->fence.known)) return true;
    if (past.agent >= r->fences.size()) continue;
    const ThreadFence& own = r->fences[past.agent];
    if (past.generation < own.generation ||
        (past.generation == own.generation && past.epoch <= own.epoch)) {
      return true;
    }
  }
  return false;
}

bool Races::Ordered(const PastAccess& past, uint32_t thread) {
  if (past.generation < launch_start_) return true;  // or never
  if (past.generation < block_start_) return ReleasedToUs(past);
  if (past.generation < clocks_.generation()) return true;
  return clocks_.Knows(thread, past.agent, past.epoch);
}

bool Races::SetOrdered(uint32_t set, uint32_t thread) {
  const uint32_t* epochs = sets_.Epochs(set);
  for (uint32_t agent = 0; agent < sets_.agents(); ++agent) {
    if (epochs[agent] != 0 && !clocks_.Knows(thread, agent, epochs[agent])) return false;
  }
  return true;
}

// Against reads, for a write.
const char* Races::CheckReads(const Cell& cell, const Accessor& a, const PastAccess** other) {
  if (cell.read.generation < launch_start_) return nullptr;
  *other = &cell.read;
  if (cell.read.generation == clocks_.generation() && cell.read_set != 0) {
    if (!SetOrdered(cell.read_set, a.thread)) return "write while another thread may still read";
  } else if (!Ordered(cell.read, a.thread)) {
    return cell.read.generation < block_start_ ? "write to what another block reads"
                                               : "write while another thread may still read";
  }
  if (cell.read_by_other_block && acquired_.empty()) return "write to what another block reads";
  return nullptr;
}

// Against writes and, for a plain access, atomic operations.
const char* Races::CheckWrites(const Cell& cell, const Accessor& a, const PastAccess** other) {
  const bool reads = a.kind == Access::kRead || a.kind == Access::kVolatileRead;
  const PastAccess* unordered = Ordered(cell.write, a.thread) ? nullptr : &cell.write;
  if (!unordered && (a.kind == Access::kRead || a.kind == Access::kWrite)) {
    const bool set = cell.atomic_set != 0 && cell.atomic.generation == clocks_.generation();
    const bool ordered =
        set ? SetOrdered(cell.atomic_set, a.thread) : Ordered(cell.atomic, a.thread);
    if (!ordered) unordered = &cell.atomic;
  }
  if (!unordered) return nullptr;
  *other = unordered;
  if (unordered->generation < block_start_) {
    return reads ? "read of what another block writes" : "write to what another block writes";
  }
  return reads ? "read of another thread's write without synchronisation"
               : "write over another thread's write without synchronisation";
}

void Races::RecordRead(Cell& cell, const PastAccess& by) {
  const uint32_t now = clocks_.generation();
  PastAccess& read = cell.read;
  if (read.generation == now && read.agent != by.agent) {
    const bool known =
        by.agent < clocks_.threads() && clocks_.Knows(by.agent, read.agent, read.epoch);
    if (cell.read_set == 0 && known) {
      read = by;
      return;
    }
    if (cell.read_set == 0) {
      cell.read_set = sets_.New();
      sets_.Epochs(cell.read_set)[read.agent] = read.epoch;
    }
  } else if (read.generation != now) {
    if (read.generation >= launch_start_ && read.generation < block_start_) {
      cell.read_by_other_block = true;
    }
    cell.read_set = 0;
  }
  if (cell.read_set != 0) sets_.Epochs(cell.read_set)[by.agent] = by.epoch;
  read = by;
}

void Races::RecordAtomic(Cell& cell, const Accessor& a) {
  const uint32_t now = clocks_.generation();
  const uint32_t epoch = clocks_.epoch(a.thread);
  PastAccess& last = cell.atomic;
  if (last.generation != now) {
    cell.atomic_set = 0;
  } else if (cell.atomic_set == 0 && last.agent != a.thread) {
    cell.atomic_set = sets_.New();
    sets_.Epochs(cell.atomic_set)[last.agent] = last.epoch;
  }
  if (cell.atomic_set != 0) sets_.Epochs(cell.atomic_set)[a.thread] = epoch;
  last = {now, epoch, a.place, static_cast<uint16_t>(a.thread)};
}

const char* Races::Visit(Cell& cell, const Accessor& a, const PastAccess** other) {
  const bool reads = a.kind == Access::kRead || a.kind == Access::kVolatileRead;
  *other = &cell.write;
  if (cell.in_flight) {
    return reads ? "read of bytes that an asynchronous copy still writes"
                 : "write to bytes that an asynchronous copy still writes";
  }
  if (const char* wrong = CheckWrites(cell, a, other)) return wrong;
  if (!reads) {
    if (const char* wrong = CheckReads(cell, a, other)) return wrong;
  }
  switch (a.kind) {
    case Access::kRead:
      RecordRead(cell, {clocks_.generation(), clocks_.epoch(a.thread), a.place,
                        static_cast<uint16_t>(a.thread)});
      break;
    case Access::kWrite:
      Land(cell, a.thread, clocks_.epoch(a.thread), a.place);
      break;
    case Access::kAtomic:
      RecordAtomic(cell, a);
      break;
    case Access::kVolatileRead:
      break;
  }
  return nullptr;
}

bool Races::WriteIsKnown(const Cell& cell, uint32_t thread) {
  return Ordered(cell.write, thread) && Ordered(cell.atomic, thread);
}

void Races::ReadBy(Cell& cell, uint32_t agent, uint32_t epoch, uint32_t place) {
  RecordRead(cell, {clocks_.generation(), epoch, place, static_cast<uint16_t>(agent)});
}

void Races::Land(Cell& cell, uint32_t agent, uint32_t epoch, uint32_t place) {
  const uint32_t now = clocks_.generation();
  if (cell.read_set != 0 && cell.read.generation == now) sets_.Free(cell.read_set);
  if (cell.atomic_set != 0 && cell.atomic.generation == now) sets_.Free(cell.atomic_set);
  cell = Cell{};
  cell.write = {now, epoch, place, static_cast<uint16_t>(agent)};
}

void Races::Fence(uint32_t thread) {
  any_fence_ = true;
  ThreadFence& f = fences_[thread];
  f.generation = clocks_.generation();
  f.epoch = clocks_.epoch(thread);
  f.known = clocks_.Snapshot(thread);
}

void Races::Synchronise(uint32_t thread, const void* address) {
  if (!any_fence_ && released_.empty()) return;
  auto& there = released_[address];
  for (const auto& r : there) {
    if (r->block_start != block_start_) {
      if (std::find(acquired_.begin(), acquired_.end(), r) == acquired_.end()) {
        acquired_.push_back(r);
      }
    } else if (r->fence.known && r->fence.generation == clocks_.generation()) {
      clocks_.Acquire(thread, r->fence.known);  // inside the block
    }
  }
  if (!any_fence_) return;
  auto mine = std::make_shared<Released>();
  *mine = {.block_start = block_start_,
           .block_end = UINT32_MAX,
           .generation = clocks_.generation(),
           .known = clocks_.Snapshot(thread),
           .fence = fences_[thread],
           .fences = fences_};
  for (ThreadFence& f : mine->fences) f.known.reset();
  own_.push_back(mine);
  there.push_back(mine);
  // What this block has acquired goes on with its release.
  for (const auto& r : acquired_) {
    if (std::find(there.begin(), there.end(), r) == there.end()) there.push_back(r);
  }
}

}  // namespace lapidary::simt
