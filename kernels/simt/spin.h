// Threads that spin must let others run, and must not spin for ever.
#pragma once
#include <cstdint>

#include "kernels/simt/site.h"

namespace lapidary::simt {

// One turn of a waiting loop: others run; too many without progress are a livelock.
void SpinOnce();

// One turn of waiting for another device, on another OS thread or in another process: others run,
// and this OS thread gives way. It may go on for as long as the kernel likes.
void PauseForPeers();
uint64_t HostNanoseconds();

// An operation that a waiting loop may consist of: each 64th lets others run.
void NoteSpin();

// __trap(): the launch fails.
[[noreturn]] void StopBlock(Site site);

}  // namespace lapidary::simt
