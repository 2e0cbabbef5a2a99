// What device.h's Launch and the stand-ins of NVIDIA's libraries ask of the CUDA runtime stand-in
// (tests/support/cuda/): work in a stream's order.
#pragma once
#include <driver_types.h>

#include <functional>

#include "kernels/simt/executor.h"

namespace lapidary::simt {

// `function` stands for the kernel whose attributes were set. `body` is run once per thread.
cudaError_t EnqueueKernel(const void* function, const Grid& grid, cudaStream_t stream,
                          std::function<void()> body);

}  // namespace lapidary::simt
