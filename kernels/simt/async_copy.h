// cp.async: a thread's own copies from global to shared memory. Lazy: the target holds NaN until
// the thread waits for the copy's group. Eager: the copy is done at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct AsyncCopy {
  void* target;
  const void* source;
  uint32_t bytes;
  bool take;  // else zeros
};

// Copies of one thread, oldest first; the first groups_ are committed.
class CopyQueue {
 public:
  void Reset();
  void Add(const AsyncCopy& copy) { copies_.push_back(copy); }
  void Commit() { group_end_.push_back(copies_.size()); }
  // All but the last `pending` groups are done.
  void Wait(int pending);
  // At the thread's end.
  void FinishAll();

 private:
  void Finish(size_t end);

  std::vector<AsyncCopy> copies_;
  std::vector<size_t> group_end_;  // in copies_
  size_t done_ = 0;                // copies
  size_t first_group_ = 0;         // not yet done
};

void CopyAsync(void* target, const void* source, uint32_t bytes, bool take, Site site);
void CopyAsyncCommit();
void CopyAsyncWait(int pending);

}  // namespace lapidary::simt
