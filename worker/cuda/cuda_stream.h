// A CUDA stream as the worker's Stream, with host work that waits for it.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

#include "worker/cuda/cuda_status.h"
#include "worker/stream.h"

namespace lapidary {

// Used by one thread.
class CudaStream final : public Stream {
 public:
  CudaStream() {
    error_ = CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }
  ~CudaStream() override { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t raw() { return stream_; }
  // Host work that runs on the waiting thread when Wait() or Synchronize() has passed this point.
  void WhenPassed(std::function<absl::Status()> work) {
    work_.emplace_back(++marks_, std::move(work));
  }

  void Enqueue(std::function<absl::Status()> fn) override { WhenPassed(std::move(fn)); }
  absl::Status Synchronize() override { return Wait(marks_); }
  uint64_t Record() override { return marks_; }
  absl::Status Wait(uint64_t mark) override {
    absl::Status status =
        error_.ok() ? CudaStatus(cudaStreamSynchronize(stream_), "stream") : error_;
    while (!work_.empty() && work_.front().first <= mark) {
      const std::function<absl::Status()> work = std::move(work_.front().second);
      work_.pop_front();
      if (status.ok()) status = work();
    }
    return status;
  }

 private:
  cudaStream_t stream_ = nullptr;
  absl::Status error_;
  uint64_t marks_ = 0;
  std::deque<std::pair<uint64_t, std::function<absl::Status()>>> work_;
};

}  // namespace lapidary
