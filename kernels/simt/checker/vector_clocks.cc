#include "kernels/simt/checker/vector_clocks.h"

namespace lapidary::simt {

void VectorClocks::BeginBlock(uint32_t threads, uint32_t generation) {
  threads_.assign(threads, {});
  agents_ = threads + kMaxMbarriers + kMaxWarps;
  generation_ = generation;
}

void VectorClocks::SyncWarp(uint32_t warp, uint32_t lanes) {
  const uint32_t first = warp * 32;
  const uint32_t leader = first + static_cast<uint32_t>(__builtin_ctz(lanes));
  SharedClock all = Own(leader).known;
  long sharers = 0;
  for (uint32_t l = lanes; l; l &= l - 1) {
    const ThreadClock& t = Own(first + static_cast<uint32_t>(__builtin_ctz(l)));
    if (t.known == all) ++sharers;
  }
  const bool same = sharers == __builtin_popcount(lanes);
  // The usual case: the warp has its clock to itself (and `all`), and it is changed in place.
  if (!all) {
    all = NewClock();
  } else if (!same || all.use_count() != sharers + 1) {
    all = std::make_shared<Clock>(*all);
  }
  for (uint32_t l = lanes; l; l &= l - 1) {
    const uint32_t thread = first + static_cast<uint32_t>(__builtin_ctz(l));
    ThreadClock& t = threads_[thread];
    if (!same && t.known && t.known != all) all->Join(*t.known);
    all->Raise(thread, t.epoch++);
  }
  for (uint32_t l = lanes; l; l &= l - 1) {
    ThreadClock& t = threads_[first + static_cast<uint32_t>(__builtin_ctz(l))];
    if (t.known != all) t.known = all;
  }
}

void VectorClocks::Meet(const std::vector<uint32_t>& arrived, const std::vector<uint32_t>& waited) {
  SharedClock all = NewClock();
  const Clock* joined = nullptr;  // neighbours often share one
  for (uint32_t thread : arrived) {
    ThreadClock& t = Own(thread);
    if (t.known && t.known.get() != joined) {
      joined = t.known.get();
      all->Join(*joined);
    }
    all->Raise(thread, t.epoch++);
  }
  for (uint32_t thread : waited) Own(thread).known = all;
}

void VectorClocks::Release(uint32_t thread, SharedClock* clock) {
  ThreadClock& t = Own(thread);
  if (!*clock) *clock = NewClock();
  if (clock->use_count() > 1) *clock = std::make_shared<Clock>(**clock);
  if (t.known) (*clock)->Join(*t.known);
  (*clock)->Raise(thread, t.epoch++);
}

void VectorClocks::Acquire(uint32_t thread, const SharedClock& clock) {
  if (!clock) return;
  ThreadClock& t = Own(thread);
  if (!t.known) {
    t.known = clock;
    return;
  }
  if (t.known == clock) return;
  if (t.known.use_count() > 1) t.known = std::make_shared<Clock>(*t.known);
  t.known->Join(*clock);
}

void VectorClocks::Learn(uint32_t thread, uint32_t agent, uint32_t epoch) {
  ThreadClock& t = Own(thread);
  if (t.known && (*t.known)[agent] >= epoch) return;
  if (!t.known) {
    t.known = NewClock();
  } else if (t.known.use_count() > 1) {
    t.known = std::make_shared<Clock>(*t.known);
  }
  t.known->Raise(agent, epoch);
}

SharedClock VectorClocks::Snapshot(uint32_t thread) {
  SharedClock clock;
  Release(thread, &clock);
  return clock;
}

}  // namespace lapidary::simt
