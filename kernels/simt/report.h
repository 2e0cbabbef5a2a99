// What ran: launches, threads and bytes of global memory by kernel name (LaunchConfig::name).
//
// Bytes are those of the wrappers of kernels/gpu.h (Load, Store, LoadOnce16, CpAsync16,
// BulkCopyToShared). Plain accesses count in the checked flavour alone.
//
// SIMT_REPORT=path writes the counts there as JSON when the process ends (%p: its id).
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

// One line of a kernel's source, as the memory system would see it. Checked flavour only.
struct LineTraffic {
  std::string kernel, line;
  bool shared = false, write = false;
  int bytes = 0;         // a lane
  int64_t requests = 0;  // of warps
  int64_t units = 0;     // wavefronts of shared memory, 32-byte sectors of global memory
  int64_t ideal = 0;     // units for as many bytes
};
// Off until wanted: it costs time. SIMT_PERF_REPORT=1 wants it and prints it at the end.
void WantTraffic(bool wanted);
// Of one kernel, or of all (""); empty in the plain flavour.
std::vector<LineTraffic> Traffic(const std::string& kernel);
void ResetTraffic();
// Wavefronts above the ideal.
int64_t BankConflicts(const std::string& kernel);
// Whether this is the checked flavour.
bool Checked();

// The executor's: a grid has run `blocks` blocks.
void CountLaunch(const Block& block, uint64_t blocks);

}  // namespace lapidary::simt
