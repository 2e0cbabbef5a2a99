// What the sampler needs of a group of GPUs: messages of equal size from all to all, on a stream.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace lapidary {

class DeviceAllGather {
 public:
  virtual ~DeviceAllGather() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // recv [size * bytes], device memory: rank r's `bytes` at r * bytes. send is recv + rank * bytes.
  virtual absl::Status AllGather(const void* send, int64_t bytes, void* recv,
                                 cudaStream_t stream) = 0;
};

// A group of one.
class AloneAllGather final : public DeviceAllGather {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  absl::Status AllGather(const void*, int64_t, void*, cudaStream_t) override {
    return absl::OkStatus();
  }
};

}  // namespace lapidary
