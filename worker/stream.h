// A device queue: work runs in the order enqueued, asynchronously to the caller. The CPU's is a
// real queue with its own thread; CUDA's is a cudaStream_t.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"

namespace lapidary {

class Stream {
 public:
  virtual ~Stream() = default;
  // Runs fn on a thread of the host's, after everything enqueued before. A non-OK status sticks:
  // later work of this kind is skipped until Synchronize() has returned it. The CPU's operations
  // are made of this; on CUDA it is for the odd errand, and fn must not call CUDA.
  virtual void Enqueue(std::function<absl::Status()> fn) = 0;
  // Waits until all work enqueued so far has run; the first error since the last call.
  virtual absl::Status Synchronize() = 0;

  // A mark behind all that has been enqueued so far (an event).
  virtual uint64_t Record() { return 0; }
  // Waits until the stream has passed the mark, whatever has been enqueued behind it; the first
  // error before the mark since the last Synchronize(). The error stays, for Synchronize() to take.
  virtual absl::Status Wait([[maybe_unused]] uint64_t mark) { return Synchronize(); }

  // *when becomes the time at which the stream gets here; known once Wait() or Synchronize() has
  // passed it. `when` lives until then.
  virtual void Stamp(std::chrono::steady_clock::time_point* when) {
    Enqueue([when] {
      *when = std::chrono::steady_clock::now();
      return absl::OkStatus();
    });
  }
};

std::unique_ptr<Stream> CreateCpuStream();

}  // namespace lapidary
