// What the executor tells a checker (kernels/simt/checker), if one is linked: every access and
// every event that orders accesses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct WarpgroupProduct;

enum class Access : uint8_t { kRead, kWrite, kAtomic };

class Monitor {
 public:
  virtual ~Monitor() = default;

  virtual void LaunchBegin(const char* kernel) = 0;
  virtual void LaunchEnd() = 0;
  virtual void BlockBegin() = 0;
  virtual void BlockEnd() = 0;

  // One access of one thread; `pc` stands for the place where there is no site.
  virtual void OnAccess(const void* p, size_t bytes, Access kind, Site site, const void* pc) = 0;

  // All live threads of the block have met.
  virtual void OnBlockBarrier() = 0;
  // `arrived` have met at a barrier of a part of the block; those of `waited` go on from it.
  virtual void OnBarrier(const std::vector<uint32_t>& arrived,
                         const std::vector<uint32_t>& waited) = 0;
  virtual void OnWarpSync(uint32_t warp, uint32_t lanes) = 0;

  // cp.async: `source` is null for zeros. Done: the thread that issued it has waited.
  virtual void OnCopyIssue(void* target, const void* source, size_t bytes, Site site) = 0;
  virtual void OnCopyDone(void* target, size_t bytes) = 0;

  virtual void OnMbarrierInit(void* barrier, Site site) = 0;
  virtual void OnMbarrierUse(void* barrier, Site site) = 0;
  virtual void OnMbarrierArrive(void* barrier) = 0;
  // A phase ends: what its arrivals knew is there for who acquires it.
  virtual void OnMbarrierPhase(const void* barrier) = 0;
  virtual void OnMbarrierAcquire(void* barrier) = 0;
  virtual void OnBulkIssue(void* target, const void* source, size_t bytes, void* barrier,
                           Site site) = 0;
  virtual void OnBulkDone(void* target, size_t bytes, const void* barrier) = 0;

  // A warpgroup's product reads its operands from the issue on until the wait. `index`: in the
  // group's order of issue.
  virtual void OnProductIssue(uint32_t group, const WarpgroupProduct& product) = 0;
  virtual void OnProductWait(uint32_t group, size_t index, const WarpgroupProduct& product) = 0;
};

// Null in the plain flavour.
extern Monitor* monitor;

}  // namespace lapidary::simt
