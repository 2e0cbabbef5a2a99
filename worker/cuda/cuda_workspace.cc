#include "worker/cuda/cuda_workspace.h"

#include <cuda_runtime_api.h>

#include "common/base/check.h"
#include "common/status_macros.h"
#include "worker/cuda/cublas_lt.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

constexpr int64_t kStep = 16;  // elements: rows begin at 32 bytes, and e4m3 copies of them at 16

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

absl::StatusOr<Activation> CudaWorkspace::Allocate(int64_t rows, int64_t width,
                                                   ActivationRole role) {
  ActivationInfo info{.role = role, .rows = CublasLt::PaddedRows(rows), .width = width};
  info.fp32 = role == ActivationRole::kStream || role == ActivationRole::kPle ||
              role == ActivationRole::kLogits;
  info.stride = RoundUp(width, kStep);
  if (role == ActivationRole::kSummand && width == 2 * hidden_) {
    info.half = RoundUp(hidden_, kStep);
    info.stride = 2 * info.half;
  }
  ASSIGN_OR_RETURN(void* const data,
                   Memory(info.rows * info.stride * info.element_bytes(), "activations"));
  known_.push_back({data, info});
  // Logits are read by their stride.
  return Activation{data, role == ActivationRole::kLogits ? info.stride : width};
}

const ActivationInfo& CudaWorkspace::Info(Activation a) const {
  for (const Known& known : known_) {
    if (known.data == a.data) return known.info;
  }
  LAPIDARY_CHECK(!"an activation of this backend");
  return known_.front().info;
}

absl::StatusOr<void*> CudaWorkspace::Memory(int64_t bytes, const char* what) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(bytes, what));
  if (bytes > 0) {
    RETURN_IF_CUDA_ERROR(
        what, cudaMemsetAsync(buffer.data(), 0, static_cast<size_t>(bytes), stream_.raw()));
  }
  bytes_ += bytes;
  memory_.push_back(std::move(buffer));
  return static_cast<void*>(memory_.back().data());
}

}  // namespace lapidary
