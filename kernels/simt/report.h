// What ran: launches, threads and bytes of global memory by kernel name (LaunchConfig::name).
//
// Bytes are those of the wrappers of kernels/gpu.h (Load, Store, LoadOnce16, CpAsync16,
// BulkCopyToShared). Plain accesses count in the checked flavour alone.
//
// SIMT_REPORT=path writes the counts there as JSON when the process ends.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary::simt {

struct Block;

struct KernelCounts {
  std::string kernel;
  int64_t launches = 0, blocks = 0, threads = 0;
  int64_t bytes_read = 0, bytes_written = 0;
};
// Since the start or the last reset, by name.
std::vector<KernelCounts> LaunchCounts();
// Zeros for a kernel that has not run.
KernelCounts CountsOf(const std::string& kernel);
void ResetLaunchCounts();

// The executor's: a grid has run `blocks` blocks.
void CountLaunch(const Block& block, uint64_t blocks);

}  // namespace lapidary::simt
