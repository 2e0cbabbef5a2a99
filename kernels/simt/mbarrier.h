// mbarriers and the bulk copies that complete on them.
//
// A phase without bytes ends with its last arrival. One with bytes ends, in lazy mode, only when
// somebody waits for it: until then the targets hold NaN and a further arrival is a mistake.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct BlockState;

struct BulkCopy {
  void* target;
  const void* source;
  uint32_t bytes;
};

struct MbarrierState {
  const void* address = nullptr;
  uint32_t arrivals = 0;         // a phase takes
  uint32_t pending = 0;          // arrivals this phase still waits for
  uint32_t phase = 0;            // that is under way
  int64_t expected = 0;          // bytes
  int64_t issued = 0;            // bytes of bulk copies of this phase
  bool fenced = false;           // FenceMbarrierInit after the init
  Site last;                     // use
  std::vector<BulkCopy> copies;  // of this phase
  struct Waiter {
    uint32_t thread, phase;
  };
  std::vector<Waiter> waiters;
};

class MbarrierTable {
 public:
  void Reset() { barriers_.clear(); }
  void CheckAtBlockEnd();

  std::vector<MbarrierState>& barriers() { return barriers_; }
  const std::vector<MbarrierState>& barriers() const { return barriers_; }

 private:
  std::vector<MbarrierState> barriers_;
};

void MbarrierInit(void* barrier, int arrivals, Site site);
void MbarrierInitFence();
// Arrives, once `bytes` more are expected.
void MbarrierArrive(void* barrier, uint32_t bytes, Site site);
void MbarrierWait(void* barrier, uint32_t parity, Site site);
void CopyBulk(void* target, const void* source, uint32_t bytes, void* barrier, Site site);

std::string DescribeMbarriers(const BlockState& b);

}  // namespace lapidary::simt
