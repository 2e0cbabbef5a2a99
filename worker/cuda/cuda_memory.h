// Device and pinned memory that frees itself.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace lapidary {

// Memory of the current device, aligned to 256 bytes.
class DeviceBuffer {
 public:
  // RESOURCE_EXHAUSTED says for what, how much, and how much is free. bytes == 0: a null buffer.
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes, std::string_view what);
  // At least `bytes`; what was there is lost if it has to grow. Nobody may use it any more.
  absl::Status Reserve(int64_t bytes, std::string_view what);
  DeviceBuffer() = default;
  ~DeviceBuffer() { Free(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  template <class T = uint8_t>
  T* data() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void Free();
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Page-locked host memory that a device reads and writes: copies from it do not wait for the host,
// and kernels may use it at device_data().
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t bytes, std::string_view what);
  // At least `bytes`; what was there is lost if it has to grow. Nobody may use it any more.
  absl::Status Reserve(int64_t bytes, std::string_view what);
  PinnedBuffer() = default;
  ~PinnedBuffer() { Free(); }
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

  template <class T = uint8_t>
  T* data() const {
    return static_cast<T*>(data_);
  }
  template <class T = uint8_t>
  T* device_data() const {
    return static_cast<T*>(device_data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void Free();
  void* data_ = nullptr;
  void* device_data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace lapidary
