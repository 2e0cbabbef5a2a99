#include "kernels/simt/barriers.h"

#include <cstdio>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"

namespace lapidary::simt {
namespace {

void Release(BlockState& b, BarrierState& barrier) {
  if (monitor) {
    // Who has exited takes no part in a barrier with a count.
    const uint32_t all = barrier.wanted ? b.thread_count : b.live;
    if (barrier.waiters.size() >= all) {
      monitor->OnBlockBarrier();
    } else {
      monitor->OnBarrier(barrier.arrivals, barrier.waiters);
    }
  }
  for (uint32_t t : barrier.waiters) Wake(t);
  barrier.arrived = 0;
  barrier.arrivals.clear();
  barrier.waiters.clear();
  barrier.result = barrier.votes;
  barrier.votes = 0;
  MadeProgress();
}

void Arrive(BlockState& b, BarrierState& barrier, bool wait) {
  const uint32_t self = current_thread->linear;
  ++barrier.arrived;
  barrier.arrivals.push_back(self);
  if (wait) barrier.waiters.push_back(self);
  const uint32_t wanted = barrier.wanted ? barrier.wanted : b.live;
  if (barrier.arrived >= wanted) {
    Release(b, barrier);
  } else if (wait) {
    Suspend();
  }
}

}  // namespace

void BlockBarrier(Site site) {
  BlockState& b = CurrentBlock();
  BarrierState& barrier = b.barriers[0];
  if (barrier.arrived == 0) {
    barrier.site = site;
    barrier.wanted = 0;
  } else if (barrier.wanted != 0) {
    Fail(site, "barrier 0 is in use with a count of %u threads", barrier.wanted);
  } else if (!(barrier.site == site)) {
    Fail(site, "divergent __syncthreads: others wait at %s", At(barrier.site).text);
  }
  Arrive(b, barrier, true);
}

int CountAtBarrier(bool vote, Site site) {
  BarrierState& barrier = CurrentBlock().barriers[0];
  barrier.votes += vote;
  BlockBarrier(site);
  return barrier.result;
}

void NamedBarrier(int id, int threads, bool wait, Site site) {
  BlockState& b = CurrentBlock();
  if (id < 0 || id >= kBarriers) {
    Fail(site, "there is no barrier %d", id);
    return;
  }
  if (threads <= 0 || threads % kLanes != 0 || threads > static_cast<int>(b.thread_count)) {
    Fail(site, "a barrier among %d threads in a block of %u", threads, b.thread_count);
    return;
  }
  BarrierState& barrier = b.barriers[id];
  const uint32_t warp = current_thread->warp;
  if (barrier.arrived == 0) {
    barrier.site = site;
    barrier.wanted = static_cast<uint32_t>(threads);
    barrier.warps.assign(b.warps.size(), {});
  } else if (barrier.wanted != static_cast<uint32_t>(threads)) {
    Fail(site, "barrier %d: a count of %d threads, %s gave %u", id, threads, At(barrier.site).text,
         barrier.wanted);
  }
  BarrierState::WarpPart& part = barrier.warps[warp];
  if (part.lanes == 0) {
    part.site = site;
  } else if (!(part.site == site)) {
    Fail(site, "barrier %d: other lanes of the warp are at %s", id, At(part.site).text);
  }
  const uint32_t bit = 1u << current_thread->lane;
  if (part.lanes & bit) Fail(site, "barrier %d: the thread arrives twice in one phase", id);
  part.lanes |= bit;
  Arrive(b, barrier, wait);
}

void ResetBarriers(BlockState& b) {
  for (BarrierState& barrier : b.barriers) {
    barrier.arrived = barrier.wanted = 0;
    barrier.votes = 0;
    barrier.arrivals.clear();
    barrier.waiters.clear();
  }
}

void LeaveBarriers() {
  BlockState& b = CurrentBlock();
  BarrierState& barrier = b.barriers[0];
  if (barrier.arrived > 0 && barrier.wanted == 0 && barrier.arrived >= b.live) Release(b, barrier);
}

std::string DescribeBarriers(const BlockState& b) {
  std::string text;
  for (int i = 0; i < kBarriers; ++i) {
    const BarrierState& barrier = b.barriers[i];
    if (barrier.arrived == 0) continue;
    char line[200];
    snprintf(line, sizeof line, "\n    barrier %d: %u of %u threads have come, first from %s", i,
             barrier.arrived, barrier.wanted ? barrier.wanted : b.live, At(barrier.site).text);
    text += line;
  }
  return text;
}

}  // namespace lapidary::simt
