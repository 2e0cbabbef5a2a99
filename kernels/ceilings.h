// What the machine can do at most, read bandwidth and arithmetic rate of the whole team: the roofs
// that a benchmark's shares refer to, measured in the same run because neighbours come and go.
#pragma once
#include <cstdint>

#include "kernels/gemm/arithmetic.h"
#include "kernels/thread_team.h"

namespace lapidary {

struct Ceilings {
  double read_gbs = 0;             // GB/s, from a buffer beyond every cache
  double gops[kArithmetics] = {};  // G operations/s (2 per product); 0 where this CPU lacks it
};

// Best of `rounds` for each. The buffer is read whole in every round, in pieces of 64 MB.
Ceilings MeasureCeilings(ThreadTeam& team, const uint8_t* buffer, int64_t bytes, int rounds);

// Best of `rounds` of reading [begin, begin + bytes), GB/s.
double MeasureRead(ThreadTeam& team, const uint8_t* begin, int64_t bytes, int rounds);

}  // namespace lapidary
