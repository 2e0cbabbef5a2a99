// Records launches instead of starting kernels: this file's source stands in for the entry points
// of the CUDA runtime that register and launch kernels, so that a program with launchers in it can
// tell, on a machine without a GPU, what they would start. Nothing else of the runtime may be
// called.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace lapidary {

struct RecordedLaunch {
  std::string symbol;       // of the kernel in the device code
  int threads = 0;          // of a block
  size_t shared_bytes = 0;  // dynamic
};

// All launches since the last call, in order.
std::vector<RecordedLaunch> TakeLaunches();

}  // namespace lapidary
