#include "kernels/simt/checker/checker.h"

#include <link.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "kernels/simt/checker/places.h"
#include "kernels/simt/failure.h"

namespace lapidary::simt {
namespace {

// Constants and tables of the program: kernels may read them.
bool InProgram(uintptr_t address) {
  struct Segments {
    std::vector<std::pair<uintptr_t, uintptr_t>> all;
  };
  static const Segments segments = [] {
    Segments s;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& h = info->dlpi_phdr[i];
            if (h.p_type != PT_LOAD) continue;
            const uintptr_t begin = info->dlpi_addr + h.p_vaddr;
            static_cast<Segments*>(to)->all.push_back({begin, begin + h.p_memsz});
          }
          return 0;
        },
        &s);
    return s;
  }();
  for (const auto& [begin, end] : segments.all) {
    if (address >= begin && address < end) return true;
  }
  return false;
}

const char* Verb(Access kind) {
  switch (kind) {
    case Access::kRead:
    case Access::kVolatileRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic operation";
  }
  return "";
}

bool Writes(Access kind) { return kind == Access::kWrite || kind == Access::kAtomic; }

}  // namespace

std::string Text(const char* format, ...) {
  char text[300];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

BlockChecker& CurrentChecker() {
  static thread_local std::unique_ptr<BlockChecker> own;
  if (!own) own = std::make_unique<BlockChecker>();
  return *own;
}

BlockChecker::BlockChecker() : shared_(kArenaBytes / 16), read_by_products_(kArenaBytes / 16) {}

void BlockChecker::LaunchBegin(const char*) {
  block_ = &CurrentBlock();
  races_.BeginLaunch();
  global_cells_.Clear();
  reported_.clear();
}

void BlockChecker::BlockBegin() {
  races_.BeginBlock(block_->thread_count);
  shared_cells_.Clear();
  written_.reset();
  std::fill(read_by_products_.begin(), read_by_products_.end(), 0);
  mbarriers_.clear();
  for (auto& waits : product_waits_) waits.clear();
  proxy_fences_.assign(block_->thread_count, {});
  traffic_.BeginBlock(block_->kernel, block_->warps.size());
}

void BlockChecker::BlockEnd() { traffic_.FlushAll(); }

void BlockChecker::Report(const Accessor& a, const std::string& what) {
  if (!reported_.insert({a.place, what.substr(0, 24)}).second) return;
  Fail({}, "%s, by thread %u at %s", what.c_str(), a.thread, PlaceName(a.place).c_str());
}

std::string BlockChecker::NameOf(uint32_t agent) const {
  const VectorClocks& clocks = races_.clocks();
  if (agent < clocks.threads()) return Text("thread %u", agent);
  if (agent < clocks.WarpAgent(0)) return "a bulk copy";
  return Text("a wgmma of warp %u", agent - clocks.WarpAgent(0));
}

bool BlockChecker::OnAccess(const void* pointer, size_t bytes, const Accessor& a) {
  const auto* p = static_cast<const unsigned char*>(pointer);
  const size_t offset = static_cast<size_t>(p - block_->shared);
  if (offset < kArenaBytes) {
    if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && offset % bytes != 0) {
      Report(a, Text("misaligned %s of %zu bytes at %p", Verb(a.kind), bytes, pointer));
      AbandonBlock();  // the access itself may fault
    }
    OnSharedAccess(offset, bytes, a);
  } else {
    if (OnLocalAccess(p, a)) return false;
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes != 0) {
      Report(a, Text("misaligned %s of %zu bytes at %p", Verb(a.kind), bytes, pointer));
      AbandonBlock();  // the access itself may fault
    }
    OnGlobalAccess(address, bytes, a);
  }
  if (a.kind == Access::kAtomic) races_.Synchronise(a.thread, pointer);
  return offset >= kArenaBytes;
}

bool BlockChecker::OnLocalAccess(const unsigned char* p, const Accessor& a) {
  const unsigned char* stack = block_->threads[a.thread].fiber.stack;
  if (p >= stack && p < stack + kStackBytes) return true;
  if (p >= block_->parameters && p < block_->parameters + block_->parameter_bytes) {
    if (Writes(a.kind)) Report(a, "write to the kernel's parameters");
    return true;
  }
  if (block_->stacks.Contains(p)) {
    Report(a, Text("%s of another thread's local memory", Verb(a.kind)));
    return true;
  }
  return false;
}

// Visits all cells of one access, piece by piece where it is larger than 16 bytes.
void BlockChecker::VisitCells(Granule& g, CellPool& pool, uint32_t stale, uintptr_t address,
                              size_t bytes, const Accessor& a, const char* space, uintptr_t base) {
  ForCells(g, pool, stale, races_.clocks().generation(), static_cast<uint32_t>(address % 16),
           static_cast<uint32_t>(bytes), [&](Cell& cell) {
             const PastAccess* other = nullptr;
             const char* wrong = races_.Visit(cell, a, &other);
             if (!wrong) return;
             Report(a, Text("race: %s, %s memory at %zu; the other: %s at %s", wrong, space,
                            static_cast<size_t>(address - base), NameOf(other->agent).c_str(),
                            PlaceName(other->place).c_str()));
           });
}

void BlockChecker::OnSharedAccess(size_t offset, size_t bytes, const Accessor& a) {
  if (offset + bytes > block_->shared_used) {
    Report(a, Text("shared memory out of bounds: %s of %zu bytes at %zu of %zu", Verb(a.kind),
                   bytes, offset, block_->shared_used));
    return;
  }
  const bool write = Writes(a.kind);
  if (traffic::Wanted()) {
    const ThreadState& t = block_->threads[a.thread];
    traffic_.Add(t.warp, t.lane, a.place, block_->shared + offset, bytes, true, write);
  }
  for (size_t at = offset, left = bytes; left > 0;) {
    const size_t piece = std::min(left, 16 - at % 16);
    if (!write || a.kind == Access::kAtomic) {
      for (size_t i = at; i < at + piece; ++i) {
        if (written_[i]) continue;
        Report(a, Text("read of shared memory that nobody has written, at %zu", i));
        break;
      }
    }
    if (write) {
      for (size_t i = at; i < at + piece; ++i) written_.set(i);
      if (read_by_products_[at / 16] != 0) {
        Report(a, Text("write to an operand of a wgmma that is under way, at %zu", at));
      }
    }
    VisitCells(shared_[at / 16], shared_cells_, races_.block_start(), at, piece, a, "shared", 0);
    at += piece;
    left -= piece;
  }
}

DeviceRange* BlockChecker::RangeOf(uintptr_t address, size_t bytes, const Accessor& a) {
  const uint64_t version = DeviceRangesVersion();
  if (!last_range_ || version != ranges_version_ || address < last_range_->begin ||
      address >= last_range_->end) {
    last_range_ = FindDeviceRange(address);
    ranges_version_ = version;
  }
  if (!last_range_) {
    if (!Writes(a.kind) && InProgram(address)) return nullptr;
    if (const auto below = DeviceRangeBelow(address)) {
      Report(a, Text("global memory out of bounds: %s of %zu bytes at %zu of %zu", Verb(a.kind),
                     bytes, static_cast<size_t>(address - below->begin),
                     static_cast<size_t>(below->end - below->begin)));
      AbandonBlock();
    }
    Report(a, Text("%s of %zu bytes at %p, which is no device memory", Verb(a.kind), bytes,
                   reinterpret_cast<void*>(address)));
    AbandonBlock();
  }
  if (address + bytes > last_range_->end) {
    Report(a, Text("global memory out of bounds: %s of %zu bytes at %zu of %zu", Verb(a.kind),
                   bytes, static_cast<size_t>(address - last_range_->begin),
                   static_cast<size_t>(last_range_->end - last_range_->begin)));
    AbandonBlock();
  }
  return last_range_.get();
}

void BlockChecker::OnGlobalAccess(uintptr_t address, size_t bytes, const Accessor& a) {
  DeviceRange* range = RangeOf(address, bytes, a);
  if (!range) return;
  const bool write = Writes(a.kind);
  if (traffic::Wanted()) {
    const ThreadState& t = block_->threads[a.thread];
    traffic_.Add(t.warp, t.lane, a.place, reinterpret_cast<void*>(address), bytes, false, write);
  }
  if (range->kind == MemoryKind::kShared) return;
  if (!write || a.kind == Access::kAtomic) {
    if (const uintptr_t at = range->FirstUnwritten(address, bytes)) {
      Report(a, Text("read of device memory that nobody has written, at %zu of %zu",
                     static_cast<size_t>(at - range->begin),
                     static_cast<size_t>(range->end - range->begin)));
    }
  }
  if (write) range->MarkWritten(address, bytes);
  for (size_t left = bytes; left > 0;) {
    const size_t piece = std::min<size_t>(left, 16 - address % 16);
    VisitCells(range->GranuleOf(address), global_cells_, races_.launch_start(), address, piece, a,
               "global", range->begin);
    address += piece;
    left -= piece;
  }
}

void BlockChecker::OnCopyIssue(size_t offset, size_t bytes, uint32_t place) {
  const uint32_t thread = current_thread->linear;
  OnSharedAccess(offset, bytes, {thread, place, Access::kWrite});
  for (size_t at = offset; at < offset + bytes; at += 16) {
    ForCells(shared_[at / 16], shared_cells_, races_.block_start(), races_.clocks().generation(), 0,
             16, [](Cell& cell) { cell.in_flight = true; });
  }
}

void BlockChecker::OnCopyDone(size_t offset, size_t bytes, uint32_t agent, uint32_t epoch) {
  for (size_t at = offset; at < offset + bytes; at += 16) {
    ForCells(shared_[at / 16], shared_cells_, races_.block_start(), races_.clocks().generation(), 0,
             16, [&](Cell& cell) { races_.Land(cell, agent, epoch, cell.write.place); });
  }
}

void BlockChecker::OnBlockBarrier() {
  races_.BeginGeneration();
  traffic_.FlushAll();
}

void BlockChecker::OnThreadFence() { races_.Fence(current_thread->linear); }

}  // namespace lapidary::simt
