// CUDA's errors as statuses that name the operation.
#pragma once
#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace lapidary {

// OK for cudaSuccess. RESOURCE_EXHAUSTED: out of memory; FAILED_PRECONDITION: no device, or no
// driver for this CUDA; INTERNAL: anything else, which leaves the device unusable.
absl::Status CudaError(std::string_view operation, cudaError_t error);

// No device or no driver to speak of: 34, 35 and 100.
bool MeansNoGpu(cudaError_t error);

}  // namespace lapidary

#define RETURN_IF_CUDA_ERROR(operation, expression)                               \
  do {                                                                            \
    if (const cudaError_t cuda_error = (expression); cuda_error != cudaSuccess) { \
      return ::lapidary::CudaError(operation, cuda_error);                        \
    }                                                                             \
  } while (false)
