// __syncthreads and the 16 named barriers of a block.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/simt/site.h"

namespace lapidary::simt {

struct BlockState;

// Barrier 0 among all live threads; all must come from one place of the source.
void BlockBarrier(Site site);
// The same; how many threads gave true.
int CountAtBarrier(bool vote, Site site);
// Barrier `id` among `threads` threads, whole warps; a warp's lanes must come from one place.
void NamedBarrier(int id, int threads, bool wait, Site site);

void ResetBarriers(BlockState& b);
// A thread has exited: barriers that wait for all live threads no longer wait for it.
void LeaveBarriers();
std::string DescribeBarriers(const BlockState& b);

}  // namespace lapidary::simt
