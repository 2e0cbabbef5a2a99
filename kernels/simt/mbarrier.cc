#include "kernels/simt/mbarrier.h"

#include <cstdio>
#include <cstring>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/shared_memory.h"

namespace lapidary::simt {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;

// What the barrier's eight bytes hold, so that a stray store is noticed.
uint64_t Seal(const void* barrier) {
  return 0xb0a71e5c00000000u ^ reinterpret_cast<uintptr_t>(barrier);
}

MbarrierState* Find(void* barrier) {
  for (MbarrierState& m : CurrentBlock().mbarriers.barriers()) {
    if (m.address == barrier) return &m;
  }
  return nullptr;
}

MbarrierState& Use(void* barrier, const char* operation, Site site) {
  MbarrierState* m = Find(barrier);
  if (!m) FailBlock(site, "%s: the mbarrier was never initialised", operation);
  uint64_t held;
  memcpy(&held, barrier, sizeof held);
  if (held != Seal(barrier)) FailBlock(site, "%s: something wrote over the mbarrier", operation);
  if (monitor) monitor->OnMbarrierUse(barrier, site);
  m->last = site;
  return *m;
}

bool Complete(const MbarrierState& m) { return m.pending == 0 && m.issued == m.expected; }

// The phase's bytes land, the next phase begins, and who waited goes on.
void EndPhase(MbarrierState& m) {
  for (const BulkCopy& c : m.copies) {
    if (CurrentPolicy().lazy) memcpy(c.target, c.source, c.bytes);
    if (monitor) monitor->OnBulkDone(c.target, c.bytes, m.address);
  }
  if (monitor) monitor->OnMbarrierPhase(m.address);
  m.copies.clear();
  m.pending = m.arrivals;
  m.expected = m.issued = 0;
  ++m.phase;
  for (const MbarrierState::Waiter& w : m.waiters) {
    if (w.phase + 1 == m.phase) {
      Wake(w.thread);
    } else if (w.phase + 1 < m.phase) {
      Fail(m.last, "mbarrier: phase %u ends while thread %u has not yet seen the end of phase %u",
           m.phase - 1, w.thread, w.phase);
    }
  }
  MadeProgress();
}

bool SomebodyWaits(const MbarrierState& m) {
  for (const MbarrierState::Waiter& w : m.waiters) {
    if (w.phase == m.phase) return true;
  }
  return false;
}

void AfterChange(MbarrierState& m) {
  if (!Complete(m)) {
    if (m.pending == 0 && m.issued > m.expected) {
      FailBlock(m.last, "mbarrier: copies of %ld bytes where %ld were expected",
                static_cast<long>(m.issued), static_cast<long>(m.expected));
    }
    return;
  }
  if (m.copies.empty() || !CurrentPolicy().lazy || SomebodyWaits(m)) EndPhase(m);
}

}  // namespace

void MbarrierInit(void* barrier, int arrivals, Site site) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0 || !InShared(barrier, 8)) {
    FailBlock(site, "mbarrier: not eight aligned bytes of shared memory");
  }
  if (arrivals < 1 || arrivals > kMostBytes) FailBlock(site, "mbarrier: %d arrivals", arrivals);
  if (Find(barrier)) Fail(site, "mbarrier: initialised twice");
  if (monitor) monitor->OnMbarrierInit(barrier, site);
  MbarrierState m;
  m.address = barrier;
  m.arrivals = m.pending = static_cast<uint32_t>(arrivals);
  m.last = site;
  CurrentBlock().mbarriers.barriers().push_back(m);
  const uint64_t seal = Seal(barrier);
  memcpy(barrier, &seal, sizeof seal);
}

void MbarrierInitFence() {
  for (MbarrierState& m : CurrentBlock().mbarriers.barriers()) m.fenced = true;
}

void MbarrierArrive(void* barrier, uint32_t bytes, Site site) {
  MbarrierState& m = Use(barrier, "mbarrier arrive", site);
  if (m.pending == 0) {
    FailBlock(site,
              "mbarrier: one arrival more than the %u of phase %u, whose bytes may still be on "
              "their way",
              m.arrivals, m.phase);
  }
  m.expected += bytes;
  if (m.expected > kMostBytes) FailBlock(site, "mbarrier: %ld bytes in a phase", long{m.expected});
  if (monitor) monitor->OnMbarrierArrive(barrier);
  --m.pending;
  AfterChange(m);
}

void MbarrierWait(void* barrier, uint32_t parity, Site site) {
  MbarrierState* m = &Use(barrier, "mbarrier wait", site);
  if (parity > 1) FailBlock(site, "mbarrier: parity %u", parity);
  const uint32_t self = current_thread->linear;
  if ((m->phase & 1) == parity) {
    const uint32_t phase = m->phase;
    m->waiters.push_back({self, phase});
    if (Complete(*m)) {
      EndPhase(*m);
    } else {
      Suspend();
    }
    m = Find(barrier);  // the table may have grown
    for (size_t i = 0; i < m->waiters.size(); ++i) {
      if (m->waiters[i].thread != self) continue;
      m->waiters[i] = m->waiters.back();
      m->waiters.pop_back();
      break;
    }
  }
  if (monitor) monitor->OnMbarrierAcquire(barrier);
}

void CopyBulk(void* target, const void* source, uint32_t bytes, void* barrier, Site site) {
  MbarrierState& m = Use(barrier, "bulk copy", site);
  if (!m.fenced) Fail(site, "bulk copy: FenceMbarrierInit is missing after the mbarrier's init");
  const uintptr_t addresses =
      reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source);
  if (addresses % 16 != 0 || bytes % 16 != 0 || bytes == 0) {
    Fail(site, "bulk copy: %p to %p, %u bytes: not multiples of 16", source, target, bytes);
  }
  if (!InShared(target, bytes)) {
    FailBlock(site, "bulk copy: the target is not in the block's shared memory");
  }
  CurrentBlock().bytes_read += bytes;
  if (monitor) monitor->OnBulkIssue(target, source, bytes, barrier, site);
  if (CurrentPolicy().lazy) {
    memset(target, 0xff, bytes);
  } else {
    memcpy(target, source, bytes);
  }
  m.copies.push_back({target, source, bytes});
  m.issued += bytes;
  AfterChange(m);
}

void MbarrierTable::CheckAtBlockEnd() {
  for (const MbarrierState& m : barriers_) {
    const auto offset = static_cast<const unsigned char*>(m.address) - CurrentBlock().shared;
    if (m.issued != m.expected) {
      Fail(m.last, "mbarrier at %td: the block ends in phase %u with %ld bytes copied of %ld",
           offset, m.phase, static_cast<long>(m.issued), static_cast<long>(m.expected));
    } else if (!m.copies.empty()) {
      Fail(m.last, "mbarrier at %td: the block ends and nobody has waited for its bulk copies",
           offset);
    }
  }
}

std::string DescribeMbarriers(const BlockState& b) {
  std::string text;
  for (const MbarrierState& m : b.mbarriers.barriers()) {
    if (m.waiters.empty()) continue;
    char line[256];
    snprintf(line, sizeof line,
             "\n    mbarrier at %td: phase %u, %u of %u arrivals missing, %ld of %ld bytes; %zu "
             "threads wait, thread %u for parity %u (%s)",
             static_cast<const unsigned char*>(m.address) - b.shared, m.phase, m.pending,
             m.arrivals, static_cast<long>(m.issued), static_cast<long>(m.expected),
             m.waiters.size(), m.waiters[0].thread, m.waiters[0].phase & 1, At(m.last).text);
    text += line;
  }
  return text;
}

}  // namespace lapidary::simt
