// Whether two accesses to the same bytes are ordered, by vector clocks inside a block; between
// blocks only by a fence and an atomic operation on each side.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/simt/checker/shadow_memory.h"
#include "kernels/simt/checker/vector_clocks.h"
#include "kernels/simt/monitor.h"

namespace lapidary::simt {

// Who accesses, as what.
struct Accessor {
  uint32_t thread = 0;
  uint32_t place = 0;
  Access kind = Access::kRead;
};

class Races {
 public:
  void BeginLaunch();
  void BeginBlock(uint32_t threads);
  // All live threads have met.
  void BeginGeneration();

  VectorClocks& clocks() { return clocks_; }
  const VectorClocks& clocks() const { return clocks_; }
  uint32_t block_start() const { return block_start_; }
  uint32_t launch_start() const { return launch_start_; }
  EpochSets& sets() { return sets_; }

  // Checks an access against the past of a cell and records it. What is wrong, or null.
  const char* Visit(Cell& cell, const Accessor& a, const PastAccess** other);
  // Records a write that is known to be ordered: nothing before it matters any more.
  void Land(Cell& cell, uint32_t agent, uint32_t epoch, uint32_t place);

  // Whether the thread knows of all writes to the cell.
  bool WriteIsKnown(const Cell& cell, uint32_t thread);
  // A read in the name of an agent.
  void ReadBy(Cell& cell, uint32_t agent, uint32_t epoch, uint32_t place);

  // __threadfence: what the thread knows may be released by its next atomic operation.
  void Fence(uint32_t thread);
  // An atomic operation releases what was fenced, and acquires what others released there.
  void Synchronise(uint32_t thread, const void* address);

 private:
  // A thread's last fence: what it had done by then, and knew.
  struct ThreadFence {
    uint32_t generation = 0, epoch = 0;
    SharedClock known;
  };
  // An atomic operation of a block with fences: others see what its thread knew of, as far as the
  // thread or who did it had fenced it.
  struct Released {
    uint32_t block_start, block_end;  // generations of its block
    uint32_t generation;
    SharedClock known;
    ThreadFence fence;
    std::vector<ThreadFence> fences;  // of all threads; without `known`
  };
  bool Ordered(const PastAccess& past, uint32_t thread);
  bool ReleasedToUs(const PastAccess& past) const;
  bool SetOrdered(uint32_t set, uint32_t thread);
  const char* CheckReads(const Cell& cell, const Accessor& a, const PastAccess** other);
  const char* CheckWrites(const Cell& cell, const Accessor& a, const PastAccess** other);
  void RecordRead(Cell& cell, const PastAccess& by);
  void RecordAtomic(Cell& cell, const Accessor& a);

  VectorClocks clocks_;
  EpochSets sets_;
  uint32_t launch_start_ = 0, block_start_ = 0;  // generations
  std::vector<ThreadFence> fences_;              // by thread
  bool any_fence_ = false;                       // in this block
  std::unordered_map<const void*, std::vector<std::shared_ptr<Released>>> released_;  // by address
  std::vector<std::shared_ptr<Released>> acquired_;  // by this block
  std::vector<std::shared_ptr<Released>> own_;       // of this block
};

}  // namespace lapidary::simt
