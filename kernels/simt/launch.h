// What device.h's Launch and the stand-ins of NVIDIA's libraries ask of the CUDA runtime stand-in
// (tests/support/cuda/): work in a stream's order.
#pragma once
#include <driver_types.h>

#include "kernels/simt/executor.h"

namespace lapidary::simt {

// `function` stands for the kernel whose attributes were set.
cudaError_t EnqueueKernel(const void* function, const Grid& grid, cudaStream_t stream,
                          KernelBody body);

}  // namespace lapidary::simt
