#include "worker/cuda/cuda_memory.h"

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

std::string Mebibytes(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(int64_t bytes, std::string_view what) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error = cudaMalloc(&buffer.data_, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // not a broken device
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) free = total = 0;
    return absl::ResourceExhaustedError(absl::StrFormat(
        "no GPU memory for %s: %s wanted, %s of %s free", what, Mebibytes(bytes),
        Mebibytes(static_cast<int64_t>(free)), Mebibytes(static_cast<int64_t>(total))));
  }
  RETURN_IF_CUDA_ERROR(absl::StrFormat("memory for %s", what), error);
  buffer.bytes_ = bytes;
  return buffer;
}

absl::Status DeviceBuffer::Reserve(int64_t bytes, std::string_view what) {
  if (bytes <= bytes_) return absl::OkStatus();
  Free();  // first, so that both need not fit
  ASSIGN_OR_RETURN(*this, Allocate(bytes, what));
  return absl::OkStatus();
}

void DeviceBuffer::Free() {
  if (data_ != nullptr) (void)cudaFree(data_);
  data_ = nullptr;
  bytes_ = 0;
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this == &other) return *this;
  Free();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t bytes, std::string_view what) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error =
      cudaHostAlloc(&buffer.data_, static_cast<size_t>(bytes), cudaHostAllocMapped);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrFormat("no page-locked host memory for %s: %s wanted", what, Mebibytes(bytes)));
  }
  RETURN_IF_CUDA_ERROR(absl::StrFormat("pinned memory for %s", what), error);
  buffer.bytes_ = bytes;
  RETURN_IF_CUDA_ERROR(absl::StrFormat("mapping of %s", what),
                       cudaHostGetDevicePointer(&buffer.device_data_, buffer.data_, 0));
  return buffer;
}

absl::Status PinnedBuffer::Reserve(int64_t bytes, std::string_view what) {
  if (bytes <= bytes_) return absl::OkStatus();
  Free();
  ASSIGN_OR_RETURN(*this, Allocate(bytes, what));
  return absl::OkStatus();
}

void PinnedBuffer::Free() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  if (this == &other) return *this;
  Free();
  data_ = std::exchange(other.data_, nullptr);
  device_data_ = std::exchange(other.device_data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

}  // namespace lapidary
