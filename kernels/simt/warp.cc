#include "kernels/simt/warp.h"

#include <cstdio>

#include "kernels/simt/block_state.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"

namespace lapidary::simt {
namespace {

// Where lanes of this mask meet: an open meeting with the mask, or an empty place.
Meeting& FindMeeting(WarpState& warp, uint32_t mask, uint32_t self, Site site) {
  Meeting *same = nullptr, *empty = nullptr;
  for (Meeting& m : warp.partial) {
    if (m.arrived == 0) {
      if (!empty) empty = &m;
    } else if (m.mask == mask) {
      same = &m;
    } else if ((m.mask & warp.live & self) && (m.arrived & mask)) {  // each waits for the other
      FailBlock(site, "lanes meet with different masks: %08x here, %08x at %s", mask, m.mask,
                At(m.site).text);
    }
  }
  if (same) return *same;
  if ((mask & warp.live) == warp.live) return warp.whole;
  if (!empty) FailBlock(site, "too many groups of lanes meet at once");
  return *empty;
}

void Complete(uint32_t warp_index, WarpState& warp, Meeting& m) {
  const uint32_t lanes = m.arrived;
  m.arrived = 0;
  if (&m != &warp.whole) --warp.open_partial;
  if (monitor && lanes == warp.live) monitor->OnWarpMeeting(warp_index);
  if (m.complete) m.complete(warp.operand, lanes, m.site);
  WakeLanes(warp_index, lanes);
}

void Meet(uint32_t mask, Site site, void* operand, Completion complete, bool aligned) {
  const Thread& self = *current_thread;
  WarpState& warp = CurrentBlock().warps[self.warp];
  const uint32_t bit = 1u << self.lane;
  if (!(mask & bit)) {
    Fail(site, "lane %u is not in its own mask %08x", self.lane, mask);
    mask |= bit;
  }
  Meeting& whole = warp.whole;
  const bool usual = warp.open_partial == 0 && whole.arrived != 0 && whole.mask == mask;
  Meeting& m = usual ? whole : FindMeeting(warp, mask, bit, site);
  if (m.arrived == 0) {
    if (&m != &whole) ++warp.open_partial;
    m.mask = mask;
    m.site = site;
    m.complete = complete;
    m.aligned = aligned;
  } else if (m.mask != mask) {
    FailBlock(site, "lanes meet with different masks: %08x here, %08x at %s", mask, m.mask,
              At(m.site).text);
  } else if (m.complete != complete) {
    FailBlock(site, "lanes of mask %08x meet at different operations: %s", mask, At(m.site).text);
  }
  warp.operand[self.lane] = operand;
  m.arrived |= bit;
  if (m.arrived == (m.mask & warp.live)) {
    Complete(self.warp, warp, m);
  } else {
    Suspend();
  }
}

}  // namespace

void MeetLanes(uint32_t mask, Site site, void* operand, Completion complete) {
  Meet(mask, site, operand, complete, false);
}

void MeetWarp(Site site, void* operand, Completion complete) {
  const Thread& self = *current_thread;
  WarpState& warp = CurrentBlock().warps[self.warp];
  if (warp.live != 0xffffffffu) {
    FailBlock(site, "an instruction for the whole warp, but only lanes %08x live", warp.live);
  }
  Meeting& m = warp.whole;
  if (m.arrived != 0 && !(m.site == site && m.complete == complete)) {
    FailBlock(site, "an instruction for the whole warp, but other lanes are at %s",
              At(m.site).text);
  }
  Meet(0xffffffffu, site, operand, complete, true);
}

void SyncWarp(uint32_t mask, Site site) {
  MeetLanes(mask, site, nullptr, [](void**, uint32_t lanes, Site) {
    if (monitor) monitor->OnWarpSync(current_thread->warp, lanes);
  });
}

void LeaveMeetings() {
  WarpState& warp = CurrentBlock().OwnWarp();
  const uint32_t index = current_thread->warp;
  auto leave = [&](Meeting& m) {
    if (m.arrived != 0 && m.aligned) {
      FailBlock(m.site, "an instruction for the whole warp: lane %u exits instead",
                current_thread->lane);
    }
    if (m.arrived != 0 && m.arrived == (m.mask & warp.live)) Complete(index, warp, m);
  };
  leave(warp.whole);
  for (Meeting& m : warp.partial) leave(m);
}

std::string DescribeMeetings(const BlockState& b) {
  std::string text;
  int shown = 0;
  for (size_t w = 0; w < b.warps.size(); ++w) {
    const WarpState& warp = b.warps[w];
    auto describe = [&](const Meeting& m) {
      if (m.arrived == 0 || shown++ >= 6) return;
      char line[200];
      snprintf(line, sizeof line, "\n    warp %zu: lanes %08x wait at %s for lanes %08x", w,
               m.arrived, At(m.site).text, m.mask & warp.live & ~m.arrived);
      text += line;
    };
    describe(warp.whole);
    for (const Meeting& m : warp.partial) describe(m);
  }
  return text;
}

}  // namespace lapidary::simt
