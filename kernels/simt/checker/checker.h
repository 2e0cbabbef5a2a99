// The checker's view of one OS thread: the block that runs there, and its memory.
#pragma once
#include <bitset>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/simt/block_state.h"
#include "kernels/simt/checker/device_ranges.h"
#include "kernels/simt/checker/races.h"
#include "kernels/simt/checker/shadow_memory.h"
#include "kernels/simt/checker/traffic.h"
#include "kernels/simt/monitor.h"

namespace lapidary::simt {

std::string Text(const char* format, ...) __attribute__((format(printf, 1, 2)));

class BlockChecker {
 public:
  BlockChecker();

  void LaunchBegin(const char* kernel);
  void BlockBegin();
  void BlockEnd();

  // An access of `a.thread` anywhere; whether it was one of global memory.
  bool OnAccess(const void* p, size_t bytes, const Accessor& a);
  // Accesses of executor instructions to shared memory.
  void OnSharedAccess(size_t offset, size_t bytes, const Accessor& a);

  void OnCopyIssue(size_t offset, size_t bytes, uint32_t place);
  // Bytes of a copy have arrived, in the name of an agent.
  void OnCopyDone(size_t offset, size_t bytes, uint32_t agent, uint32_t epoch);

  void OnBlockBarrier();
  void OnThreadFence();
  void OnProxyFence();

  void OnMbarrierInit(void* barrier, uint32_t place);
  void OnMbarrierUse(void* barrier, uint32_t place);
  void OnMbarrierArrive(void* barrier);
  void OnMbarrierPhase(const void* barrier);
  void OnMbarrierAcquire(void* barrier);
  void OnBulkIssue(size_t offset, size_t bytes, uint32_t place);
  void OnBulkDone(void* target, size_t bytes, const void* barrier);

  void OnProductIssue(uint32_t group, const WarpgroupProduct& product);
  void OnProductWait(uint32_t thread, size_t index, const WarpgroupProduct& product);

  Races& races() { return races_; }
  TrafficLog& traffic() { return traffic_; }

 private:
  struct MbarrierClock {
    const void* address;
    uint32_t generation = 0, epoch = 0;
    SharedClock arriving, completed;
  };

  void Report(const Accessor& a, const std::string& what);
  std::string NameOf(uint32_t agent) const;
  bool OnLocalAccess(const unsigned char* p, const Accessor& a);
  void OnGlobalAccess(uintptr_t address, size_t bytes, const Accessor& a);
  DeviceRange* RangeOf(uintptr_t address, size_t bytes, const Accessor& a);
  void VisitCells(Granule& g, CellPool& pool, uint32_t stale, uintptr_t address, size_t bytes,
                  const Accessor& a, const char* space, uintptr_t base);
  MbarrierClock& ClockOf(const void* barrier, uint32_t* agent);
  void RefreshMbarrier(MbarrierClock& m);
  bool Fenced(const Cell& cell, uint32_t reader);
  template <class F>
  void ForOperandChunks(const WarpgroupProduct& product, F f);
  template <class F>
  void ForChunkCells(uint32_t offset, F f);

  BlockState* block_ = nullptr;
  Races races_;
  TrafficLog traffic_;
  std::vector<Granule> shared_;
  CellPool shared_cells_, global_cells_;
  std::bitset<kArenaBytes> written_;       // of shared memory
  std::vector<uint8_t> read_by_products_;  // products under way, by granule
  std::vector<MbarrierClock> mbarriers_;
  std::vector<uint32_t> product_waits_[8];  // threads that have waited, by group and index
  struct ProxyFence {
    uint32_t generation = 0, epoch = 0;
    SharedClock known;
  };
  std::vector<ProxyFence> proxy_fences_;  // by thread
  std::shared_ptr<DeviceRange> last_range_;
  uint64_t ranges_version_ = 0;
  std::set<std::pair<uint32_t, std::string>> reported_;
};

// Of the calling OS thread.
BlockChecker& CurrentChecker();

}  // namespace lapidary::simt
