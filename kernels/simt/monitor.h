// What the executor and the runtime stand-in tell a checker (kernels/simt/checker), if one is
// linked: every access, and every event that orders accesses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/simt/report.h"
#include "kernels/simt/site.h"

namespace lapidary::simt {

struct WarpgroupProduct;

// A volatile read may meet atomic writes; a volatile write counts as atomic.
enum class Access : uint8_t { kRead, kWrite, kAtomic, kVolatileRead };
// kShared: of several devices, which may use it at the same time. What orders them is not looked
// at, only bounds.
enum class MemoryKind : uint8_t { kDevice, kMappedHost, kShared };

class Monitor {
 public:
  virtual ~Monitor() = default;

  // -- Memory of the device, told by the host.
  virtual void OnAllocate(const void* p, size_t bytes, MemoryKind kind) = 0;
  virtual void OnFree(const void* p) = 0;
  // A copy or memset has written; `from` is null, or device memory that was copied.
  virtual void OnHostWrite(const void* p, size_t bytes, const void* from) = 0;

  virtual void LaunchBegin(const char* kernel) = 0;
  virtual void LaunchEnd() = 0;
  virtual void BlockBegin() = 0;
  virtual void BlockEnd() = 0;

  // -- Accesses of the thread that runs; `pc` stands for the place where there is no site.
  virtual void OnAccess(const void* p, size_t bytes, Access kind, Site site, const void* pc) = 0;
  virtual void OnThreadFence() = 0;
  virtual void OnProxyFence() = 0;

  // -- Barriers.
  // All live threads of the block have met.
  virtual void OnBlockBarrier() = 0;
  // `arrived` have met at a barrier of a part of the block; those of `waited` go on from it.
  virtual void OnBarrier(const std::vector<uint32_t>& arrived,
                         const std::vector<uint32_t>& waited) = 0;
  virtual void OnWarpSync(uint32_t warp, uint32_t lanes) = 0;
  // All live lanes of a warp have met at some operation; that orders nothing.
  virtual void OnWarpMeeting(uint32_t warp) = 0;

  // -- cp.async: `source` is null for zeros. Done: the thread that issued it has waited.
  virtual void OnCopyIssue(void* target, const void* source, size_t bytes, Site site) = 0;
  virtual void OnCopyDone(void* target, size_t bytes) = 0;

  // -- mbarriers and bulk copies.
  virtual void OnMbarrierInit(void* barrier, Site site) = 0;
  virtual void OnMbarrierUse(void* barrier, Site site) = 0;
  virtual void OnMbarrierArrive(void* barrier) = 0;
  // A phase ends: what its arrivals knew is there for who acquires it.
  virtual void OnMbarrierPhase(const void* barrier) = 0;
  virtual void OnMbarrierAcquire(void* barrier) = 0;
  virtual void OnBulkIssue(void* target, const void* source, size_t bytes, void* barrier,
                           Site site) = 0;
  virtual void OnBulkDone(void* target, size_t bytes, const void* barrier) = 0;

  // -- A warpgroup's product reads its operands from the issue on until all warps have waited,
  // which is told thread by thread. `index`: in the group's order of issue.
  virtual void OnProductIssue(uint32_t group, size_t index, const WarpgroupProduct& product) = 0;
  virtual void OnProductWait(uint32_t thread, size_t index, const WarpgroupProduct& product) = 0;

  // -- report.h
  virtual void WantTraffic(bool wanted) = 0;
  virtual std::vector<LineTraffic> Traffic(const std::string& kernel) = 0;
  virtual void ResetTraffic() = 0;
};

// Null in the plain flavour.
extern Monitor* monitor;

// A plain access of device code, as the compiler's instrumentation sees it.
void NotePlainAccess(const void* p, size_t bytes, Access kind, const void* pc);

}  // namespace lapidary::simt
