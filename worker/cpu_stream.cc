// The CPU's stream: a queue with a thread of its own.
#include <cstdint>
#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/stream.h"

namespace lapidary {
namespace {

// Owned by whoever enqueues; the thread ends when the queue has run empty after the destructor
// asked.
class CpuStream final : public Stream {
 public:
  CpuStream() : thread_([this] { Serve(); }) {}
  ~CpuStream() override {
    {
      absl::MutexLock lock(&mu_);
      closing_ = true;
    }
    thread_.join();
  }
  CpuStream(const CpuStream&) = delete;
  CpuStream& operator=(const CpuStream&) = delete;

  void Enqueue(std::function<absl::Status()> fn) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    queue_.push_back(std::move(fn));
    ++enqueued_;
  }

  absl::Status Synchronize() override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    AwaitFinished(enqueued_);
    return std::exchange(error_, absl::OkStatus());
  }

  uint64_t Record() override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return enqueued_;
  }

  absl::Status Wait(uint64_t mark) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    AwaitFinished(mark);
    return error_at_ <= mark ? error_ : absl::OkStatus();
  }

 private:
  struct Goal {
    const CpuStream* stream;
    uint64_t count;
  };

  void AwaitFinished(uint64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const Goal goal{this, count};
    mu_.Await(absl::Condition(
        +[](const Goal* g)
             ABSL_NO_THREAD_SAFETY_ANALYSIS { return g->stream->finished_ >= g->count; },
        &goal));
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty() || closing_; }

  void Serve() ABSL_LOCKS_EXCLUDED(mu_) {
    while (true) {
      std::deque<std::function<absl::Status()>> batch;
      bool skip = false;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &CpuStream::HasWork));
        if (queue_.empty()) return;
        batch.swap(queue_);  // one lock for all that has come meanwhile
        skip = !error_.ok();
      }
      for (std::function<absl::Status()>& fn : batch) {
        absl::Status status;
        if (!skip) status = fn();
        fn = nullptr;  // what it holds is released before anyone hears that it has run
        absl::MutexLock lock(&mu_);
        ++finished_;
        if (!status.ok() && error_.ok()) {
          error_ = std::move(status);
          error_at_ = finished_;
        }
        // Synchronize() may have taken the error: what was enqueued after it runs again.
        skip = !error_.ok();
      }
    }
  }

  absl::Mutex mu_;
  std::deque<std::function<absl::Status()>> queue_ ABSL_GUARDED_BY(mu_);  // oldest first
  uint64_t enqueued_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t finished_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status error_ ABSL_GUARDED_BY(mu_);     // the first since Synchronize()
  uint64_t error_at_ ABSL_GUARDED_BY(mu_) = 0;  // the work that failed, counted from 1
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: starts when everything else exists
};

}  // namespace

std::unique_ptr<Stream> CreateCpuStream() { return std::make_unique<CpuStream>(); }

}  // namespace lapidary
