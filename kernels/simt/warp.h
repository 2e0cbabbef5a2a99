// Operations that lanes of a warp do together: they meet, the last to arrive does the work.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct BlockState;

// `operand` is the lane's own, `complete` sees those of all lanes that take part: the lanes of
// `mask` that live. All of them must name the same mask and the same operation.
void MeetLanes(uint32_t mask, Site site, void* operand,
               void (*complete)(void** operand, uint32_t lanes, Site site));
// The same for an instruction that all 32 lanes must execute (.aligned).
void MeetWarp(Site site, void* operand,
              void (*complete)(void** operand, uint32_t lanes, Site site));

// Orders memory accesses of the lanes.
void SyncWarp(uint32_t mask, Site site);

// A thread has exited: lanes that wait for it go on.
void LeaveMeetings();
std::string DescribeMeetings(const BlockState& b);

}  // namespace lapidary::simt
