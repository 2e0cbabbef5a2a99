// A device queue: work runs in the order enqueued, asynchronously to the caller. The CPU's is a
// real queue with its own thread; CUDA's is a cudaStream_t.
#pragma once
#include <functional>
#include <memory>

#include "absl/status/status.h"

namespace lapidary {

class Stream {
 public:
  virtual ~Stream() = default;
  // CPU only: runs fn on the stream's thread, after everything enqueued before. A non-OK status
  // sticks: later work is skipped until Synchronize() has returned it.
  virtual void Enqueue(std::function<absl::Status()> fn) = 0;
  // Waits until all work enqueued so far has run; the first error since the last call.
  virtual absl::Status Synchronize() = 0;
};

std::unique_ptr<Stream> CreateCpuStream();

}  // namespace lapidary
