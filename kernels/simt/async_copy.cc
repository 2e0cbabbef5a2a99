#include "kernels/simt/async_copy.h"

#include <cstring>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/shared_memory.h"

namespace lapidary::simt {
namespace {

void Do(const AsyncCopy& c) {
  if (c.take) {
    memcpy(c.target, c.source, c.bytes);
  } else {
    memset(c.target, 0, c.bytes);
  }
}

}  // namespace

void CopyQueue::Reset() {
  copies_.clear();
  group_end_.clear();
  done_ = first_group_ = 0;
}

void CopyQueue::Finish(size_t end) {
  const bool lazy = CurrentPolicy().lazy;
  for (; done_ < end; ++done_) {
    const AsyncCopy& c = copies_[done_];
    if (lazy) Do(c);
    if (monitor) monitor->OnCopyDone(c.target, c.bytes);
  }
}

void CopyQueue::Wait(int pending) {
  const size_t committed = group_end_.size();
  if (committed - first_group_ <= static_cast<size_t>(pending)) return;
  first_group_ = committed - static_cast<size_t>(pending);
  Finish(group_end_[first_group_ - 1]);
  if (done_ == copies_.size() && first_group_ == committed) Reset();
}

void CopyQueue::FinishAll() {
  Finish(copies_.size());
  Reset();
}

void CopyAsync(void* target, const void* source, uint32_t bytes, bool take, Site site) {
  BlockState& b = CurrentBlock();
  if (reinterpret_cast<uintptr_t>(target) % bytes != 0) {
    Fail(site, "cp.async: target %p is not aligned to %u", target, bytes);
  }
  if (take && reinterpret_cast<uintptr_t>(source) % bytes != 0) {
    Fail(site, "cp.async: source %p is not aligned to %u", source, bytes);
  }
  if (!InShared(target, bytes)) {
    Fail(site, "cp.async: the target is not in the block's shared memory");
    return;
  }
  if (take) b.bytes_read += bytes;
  if (monitor) monitor->OnCopyIssue(target, take ? source : nullptr, bytes, site);
  const AsyncCopy copy{target, source, bytes, take};
  if (CurrentPolicy().lazy) {
    memset(target, 0xff, bytes);
  } else {
    Do(copy);
  }
  b.Self().copies.Add(copy);
}

void CopyAsyncCommit() { CurrentBlock().Self().copies.Commit(); }

void CopyAsyncWait(int pending) { CurrentBlock().Self().copies.Wait(pending); }

}  // namespace lapidary::simt
