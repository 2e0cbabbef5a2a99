// Activations and scratch of a step, taken once, before the first.
#pragma once
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {

// How an activation lies: rows of `stride` elements.
struct ActivationInfo {
  ActivationRole role = ActivationRole::kStream;
  int64_t rows = 0, width = 0, stride = 0;
  bool fp32 = false;
  // Summands of dense MLP and experts in one: the second half begins here, else 0.
  int64_t half = 0;

  int64_t element_bytes() const { return fp32 ? 4 : 2; }
};

class CudaWorkspace {
 public:
  explicit CudaWorkspace(CudaStream& stream) : stream_(stream) {}
  // A summand twice as wide is a pair of halves, each padded.
  void set_hidden(int64_t hidden) { hidden_ = hidden; }

  // Zeroed, with rows rounded up to what products compute at a time.
  absl::StatusOr<Activation> Allocate(int64_t rows, int64_t width, ActivationRole role);
  const ActivationInfo& Info(Activation a) const;
  // Zeroed scratch; null for 0 bytes.
  template <class T>
  absl::StatusOr<T*> Scratch(int64_t count, const char* what) {
    absl::StatusOr<void*> memory = Memory(count * static_cast<int64_t>(sizeof(T)), what);
    if (!memory.ok()) return memory.status();
    return static_cast<T*>(*memory);
  }
  int64_t bytes() const { return bytes_; }

 private:
  absl::StatusOr<void*> Memory(int64_t bytes, const char* what);

  CudaStream& stream_;
  int64_t hidden_ = 0;
  std::vector<DeviceBuffer> memory_;
  struct Known {
    void* data;
    ActivationInfo info;
  };
  std::vector<Known> known_;
  int64_t bytes_ = 0;
};

}  // namespace lapidary
