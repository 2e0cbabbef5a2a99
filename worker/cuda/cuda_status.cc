#include "worker/cuda/cuda_status.h"

#include "absl/strings/str_format.h"

namespace lapidary {

bool MeansNoGpu(cudaError_t error) {
  return error == cudaErrorStubLibrary || error == cudaErrorInsufficientDriver ||
         error == cudaErrorNoDevice;
}

absl::Status CudaError(std::string_view operation, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrFormat("%s: %s (%s, CUDA error %d)", operation, cudaGetErrorString(error),
                      cudaGetErrorName(error), static_cast<int>(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  if (MeansNoGpu(error)) return absl::FailedPreconditionError(message);
  return absl::InternalError(message);
}

}  // namespace lapidary
