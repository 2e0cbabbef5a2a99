// Sums of rows by every means a block has: the executor's example of a kernel family.
//
//   sum[r] = x[r, 0] + ... + x[r, width - 1]     fp32, one order for a given width
//
// Errors: cudaErrorInvalidValue for a bad size, else the launch's own. rows == 0 is a no-op.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

struct BlockSumParams {
  const float* x = nullptr;  // [rows, width], aligned to 16
  float* sum = nullptr;      // [rows]
  int64_t rows = 0;
  int64_t width = 0;  // a multiple of 4
};
cudaError_t LaunchBlockSum(const BlockSumParams& p, cudaStream_t stream);

}  // namespace lapidary
