// A cudaStream_t as a Stream: marks are events, and work for the host that belongs behind a point
// of the stream is done by whoever waits for that point.
//
// Used on the engine thread alone; only Enqueue()'s functions run on a thread of the driver's.
#pragma once
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/stream.h"

namespace lapidary {

// An event without a time.
class CudaEvent {
 public:
  static absl::StatusOr<CudaEvent> Create();
  CudaEvent() = default;
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  cudaEvent_t raw() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaStream final : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create();
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t raw() const { return stream_; }
  // An operation could not be enqueued. Sticks until Synchronize() has returned it.
  void Fail(absl::Status why);
  void Check(std::string_view operation, cudaError_t error);
  const absl::Status& failed() const { return failed_; }
  // fn runs, on the waiting thread, once Wait() or Synchronize() has passed this point.
  void WhenPassed(std::function<absl::Status()> fn);
  // Asked whenever a point has been passed: work may have passed it by being given up.
  void set_guard(std::function<absl::Status()> guard) { guard_ = std::move(guard); }

  void Enqueue(std::function<absl::Status()> fn) override;
  absl::Status Synchronize() override;
  uint64_t Record() override;
  absl::Status Wait(uint64_t mark) override;
  void Stamp(std::chrono::steady_clock::time_point* when) override;

 private:
  // Enqueue()'s errors. Outlives the stream's last function.
  struct HostWork {
    absl::Mutex mu;
    absl::Status error ABSL_GUARDED_BY(mu);
  };
  // What is done when its mark is passed: a time to be told, or a function.
  struct Errand {
    uint64_t mark = 0;
    cudaEvent_t at = nullptr;
    std::chrono::steady_clock::time_point* when = nullptr;
    std::function<absl::Status()> fn;
  };
  struct Mark {
    uint64_t mark = 0;
    cudaEvent_t event = nullptr;
  };

  CudaStream() = default;
  cudaEvent_t TakeEvent(std::vector<cudaEvent_t>& spare, unsigned flags);
  void AskGuard();
  // The stream is past `mark`.
  void RunErrands(uint64_t mark);

  cudaStream_t stream_ = nullptr;
  absl::Status failed_;
  std::function<absl::Status()> guard_;
  uint64_t marks_ = 0;
  std::deque<Mark> pending_;  // oldest first
  std::deque<Errand> errands_;
  std::vector<cudaEvent_t> spare_events_, spare_stamps_;
  // The stamp before: times are counted from it.
  cudaEvent_t last_stamp_ = nullptr;
  std::chrono::steady_clock::time_point last_time_;
  std::shared_ptr<HostWork> host_work_ = std::make_shared<HostWork>();
};

}  // namespace lapidary
