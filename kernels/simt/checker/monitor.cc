// The checker as the executor's monitor: there as soon as the library is loaded.
#include "kernels/simt/monitor.h"

#include "kernels/simt/checker/checker.h"
#include "kernels/simt/checker/places.h"

namespace lapidary::simt {
namespace {

uint32_t Self() { return current_thread->linear; }

size_t SharedOffset(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - CurrentBlock().shared);
}

class CheckingMonitor : public Monitor {
 public:
  void OnAllocate(const void* p, size_t bytes, MemoryKind kind) override {
    AddDeviceRange(p, bytes, kind);
  }
  void OnFree(const void* p) override { RemoveDeviceRange(p); }
  void OnHostWrite(const void* p, size_t bytes, const void* from) override {
    const auto address = reinterpret_cast<uintptr_t>(p);
    const auto range = FindDeviceRange(address);
    if (!range) return;
    const auto source = reinterpret_cast<uintptr_t>(from);
    const auto source_range = from ? FindDeviceRange(source) : nullptr;
    if (!source_range || !source_range->FirstUnwritten(source, bytes)) {
      range->MarkWritten(address, bytes);
      return;
    }
    for (size_t i = 0; i < bytes; ++i) {
      if (!source_range->FirstUnwritten(source + i, 1)) range->MarkWritten(address + i, 1);
    }
  }

  void LaunchBegin(const char* kernel) override { CurrentChecker().LaunchBegin(kernel); }
  void LaunchEnd() override {}
  void BlockBegin() override { CurrentChecker().BlockBegin(); }
  void BlockEnd() override { CurrentChecker().BlockEnd(); }

  void OnAccess(const void* p, size_t bytes, Access kind, Site site, const void* pc) override {
    CurrentChecker().OnAccess(p, bytes, {Self(), PlaceId(site, pc), kind});
  }
  void OnThreadFence() override { CurrentChecker().OnThreadFence(); }
  void OnProxyFence() override { CurrentChecker().OnProxyFence(); }

  void OnBlockBarrier() override { CurrentChecker().OnBlockBarrier(); }
  void OnBarrier(const std::vector<uint32_t>& arrived,
                 const std::vector<uint32_t>& waited) override {
    CurrentChecker().races().clocks().Meet(arrived, waited);
  }
  void OnWarpSync(uint32_t warp, uint32_t lanes) override {
    CurrentChecker().races().clocks().SyncWarp(warp, lanes);
  }
  void OnWarpMeeting(uint32_t warp) override { CurrentChecker().traffic().Flush(warp); }

  void OnCopyIssue(void* target, const void* source, size_t bytes, Site site) override {
    const uint32_t place = PlaceId(site, nullptr);
    if (source) CurrentChecker().OnAccess(source, bytes, {Self(), place, Access::kRead});
    CurrentChecker().OnCopyIssue(SharedOffset(target), bytes, place);
  }
  void OnCopyDone(void* target, size_t bytes) override {
    BlockChecker& c = CurrentChecker();
    c.OnCopyDone(SharedOffset(target), bytes, Self(), c.races().clocks().epoch(Self()));
  }

  void OnMbarrierInit(void* barrier, Site site) override {
    CurrentChecker().OnMbarrierInit(barrier, PlaceId(site, nullptr));
  }
  void OnMbarrierUse(void* barrier, Site site) override {
    CurrentChecker().OnMbarrierUse(barrier, PlaceId(site, nullptr));
  }
  void OnMbarrierArrive(void* barrier) override { CurrentChecker().OnMbarrierArrive(barrier); }
  void OnMbarrierPhase(const void* barrier) override { CurrentChecker().OnMbarrierPhase(barrier); }
  void OnMbarrierAcquire(void* barrier) override { CurrentChecker().OnMbarrierAcquire(barrier); }
  void OnBulkIssue(void* target, const void* source, size_t bytes, void*, Site site) override {
    const uint32_t place = PlaceId(site, nullptr);
    CurrentChecker().OnAccess(source, bytes, {Self(), place, Access::kRead});
    CurrentChecker().OnBulkIssue(SharedOffset(target), bytes, place);
  }
  void OnBulkDone(void* target, size_t bytes, const void* barrier) override {
    CurrentChecker().OnBulkDone(target, bytes, barrier);
  }

  void OnProductIssue(uint32_t group, size_t, const WarpgroupProduct& product) override {
    CurrentChecker().OnProductIssue(group, product);
  }
  void OnProductWait(uint32_t thread, size_t index, const WarpgroupProduct& product) override {
    CurrentChecker().OnProductWait(thread, index, product);
  }

  void WantTraffic(bool wanted) override { traffic::Want(wanted); }
  std::vector<LineTraffic> Traffic(const std::string& kernel) override {
    return traffic::Of(kernel);
  }
  void ResetTraffic() override { traffic::Reset(); }
};

[[maybe_unused]] const bool installed = [] {
  monitor = new CheckingMonitor;
  return true;
}();

}  // namespace

void NotePlainAccess(const void* p, size_t bytes, Access kind, const void* pc) {
  if (!CurrentChecker().OnAccess(p, bytes, {Self(), PlaceId({}, pc), kind})) return;
  Block& block = *current_thread->block;
  const bool read = kind == Access::kRead || kind == Access::kVolatileRead;
  (read ? block.bytes_read : block.bytes_written) += static_cast<int64_t>(bytes);
}

}  // namespace lapidary::simt
