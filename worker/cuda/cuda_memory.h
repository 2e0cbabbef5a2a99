// Owners of device and pinned memory that may grow.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {

enum class CudaMemoryKind { kDevice, kPinned };

template <CudaMemoryKind kKind>
class CudaMemory {
 public:
  CudaMemory() = default;
  ~CudaMemory() { Free(); }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  unsigned char* data() { return data_; }
  const unsigned char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // At least `bytes`; what was there is lost if it has to grow. Nothing may use it any more: the
  // caller waits for the device first. Not while a stream is being captured.
  absl::Status Reserve(int64_t bytes) {
    if (bytes <= bytes_) return absl::OkStatus();
    Free();
    void* p = nullptr;
    const auto size = static_cast<size_t>(bytes);
    const cudaError_t error = kKind == CudaMemoryKind::kDevice
                                  ? cudaMalloc(&p, size)
                                  : cudaHostAlloc(&p, size, cudaHostAllocDefault);
    if (error != cudaSuccess) return CudaStatus(error, "memory of the sampler");
    data_ = static_cast<unsigned char*>(p);
    bytes_ = bytes;
    return absl::OkStatus();
  }

 private:
  void Free() {
    if (data_ == nullptr) return;
    if constexpr (kKind == CudaMemoryKind::kDevice) {
      cudaFree(data_);
    } else {
      cudaFreeHost(data_);
    }
    data_ = nullptr;
    bytes_ = 0;
  }

  unsigned char* data_ = nullptr;
  int64_t bytes_ = 0;
};
using DeviceMemory = CudaMemory<CudaMemoryKind::kDevice>;
using PinnedMemory = CudaMemory<CudaMemoryKind::kPinned>;

}  // namespace lapidary
