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
  fenced_.assign(threads, {});
  clocks_.BeginBlock(threads, block_start_);
  sets_.Begin(clocks_.agents());
}

void Races::BeginGeneration() {
  clocks_.BeginGeneration(NextGeneration());
  sets_.Clear();
}

bool Races::ReleasedToUs(const PastAccess& past) const {
  for (const auto& r : acquired_) {
    if (past.generation < r->block_start || past.generation >= r->block_end) continue;
    if (past.generation < r->generation) return true;
    if (past.generation == r->generation && (*r->clock)[past.agent] >= past.epoch) return true;
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

const char* Races::CheckWrite(const Cell& cell, const Accessor& a, const PastAccess** other) {
  *other = &cell.read;
  if (cell.read.generation < launch_start_) return nullptr;
  if (cell.read.generation == clocks_.generation() && cell.read_set != 0) {
    if (!SetOrdered(cell.read_set, a.thread)) return "write while another thread may still read";
  } else if (!Ordered(cell.read, a.thread)) {
    return cell.read.generation < block_start_ ? "write to what another block reads"
                                               : "write while another thread may still read";
  }
  if (cell.read_by_other_block && acquired_.empty()) return "write to what another block reads";
  return nullptr;
}

void Races::RecordRead(Cell& cell, const Accessor& a) {
  const uint32_t now = clocks_.generation();
  const uint32_t epoch = clocks_.epoch(a.thread);
  PastAccess& read = cell.read;
  if (read.generation == now && read.agent != a.thread) {
    if (cell.read_set == 0 && clocks_.Knows(a.thread, read.agent, read.epoch)) {
      read = {now, epoch, a.place, static_cast<uint16_t>(a.thread)};
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
  if (cell.read_set != 0) sets_.Epochs(cell.read_set)[a.thread] = epoch;
  read = {now, epoch, a.place, static_cast<uint16_t>(a.thread)};
}

void Races::RecordWrite(Cell& cell, const Accessor& a) {
  const uint32_t now = clocks_.generation();
  const uint32_t epoch = clocks_.epoch(a.thread);
  const bool atomic = a.kind == Access::kAtomic;
  if (atomic && cell.atomic_write && cell.write.generation == now) {
    if (cell.atomic_set == 0 && cell.write.agent != a.thread) {
      cell.atomic_set = sets_.New();
      sets_.Epochs(cell.atomic_set)[cell.write.agent] = cell.write.epoch;
    }
    if (cell.atomic_set != 0) sets_.Epochs(cell.atomic_set)[a.thread] = epoch;
  } else {
    cell.atomic_set = 0;
  }
  cell.write = {now, epoch, a.place, static_cast<uint16_t>(a.thread)};
  cell.atomic_write = atomic;
  cell.read = {};
  cell.read_set = 0;
  cell.read_by_other_block = false;
}

const char* Races::Visit(Cell& cell, const Accessor& a, const PastAccess** other) {
  const bool atomic = a.kind == Access::kAtomic;
  const bool reads = a.kind == Access::kRead || a.kind == Access::kVolatileRead;
  const char* wrong = nullptr;
  *other = &cell.write;
  if (cell.in_flight) {
    wrong = reads ? "read of bytes that an asynchronous copy still writes"
                  : "write to bytes that an asynchronous copy still writes";
  } else if ((atomic || a.kind == Access::kVolatileRead) && cell.atomic_write) {
    // Atomic operations may meet.
  } else {
    const bool set = cell.atomic_set != 0 && cell.write.generation == clocks_.generation();
    if (set ? !SetOrdered(cell.atomic_set, a.thread) : !Ordered(cell.write, a.thread)) {
      const bool between = cell.write.generation < block_start_;
      wrong = reads     ? between ? "read of what another block writes"
                                  : "read of another thread's write without synchronisation"
              : between ? "write to what another block writes"
                        : "write over another thread's write without synchronisation";
    }
  }
  if (!wrong && !reads) wrong = CheckWrite(cell, a, other);
  if (wrong) return wrong;
  if (a.kind == Access::kRead) {
    RecordRead(cell, a);
  } else if (!reads) {
    RecordWrite(cell, a);
  }
  return nullptr;
}

void Races::Land(Cell& cell, uint32_t agent, uint32_t epoch, uint32_t place) {
  cell = Cell{};
  cell.write = {clocks_.generation(), epoch, place, static_cast<uint16_t>(agent)};
}

void Races::Fence(uint32_t thread) {
  fenced_[thread] = {clocks_.generation(), clocks_.Snapshot(thread)};
}

void Races::Synchronise(uint32_t thread, const void* address) {
  auto& there = released_[address];
  for (const auto& r : there) {
    if (r->block_start == block_start_) {
      if (r->generation == clocks_.generation()) clocks_.Acquire(thread, r->clock);
    } else if (std::find(acquired_.begin(), acquired_.end(), r) == acquired_.end()) {
      acquired_.push_back(r);
    }
  }
  if (!fenced_[thread].clock) return;
  const auto mine = std::make_shared<Released>(
      Released{block_start_, UINT32_MAX, fenced_[thread].generation, fenced_[thread].clock});
  own_.push_back(mine);
  there.push_back(mine);
  // What this block has acquired goes on with its release.
  for (const auto& r : acquired_) {
    if (std::find(there.begin(), there.end(), r) == there.end()) there.push_back(r);
  }
}

}  // namespace lapidary::simt
