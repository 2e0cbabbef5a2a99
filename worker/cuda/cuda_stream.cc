#include "worker/cuda/cuda_stream.h"

#include <utility>

#include "worker/cuda/cuda_status.h"

namespace lapidary {

absl::StatusOr<CudaEvent> CudaEvent::Create() {
  CudaEvent event;
  RETURN_IF_CUDA_ERROR("event", cudaEventCreateWithFlags(&event.event_, cudaEventDisableTiming));
  return event;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create() {
  std::unique_ptr<CudaStream> stream(new CudaStream);
  RETURN_IF_CUDA_ERROR("stream",
                       cudaStreamCreateWithFlags(&stream->stream_, cudaStreamNonBlocking));
  RETURN_IF_CUDA_ERROR("event", cudaEventCreate(&stream->last_stamp_));
  RETURN_IF_CUDA_ERROR("event", cudaEventRecord(stream->last_stamp_, stream->stream_));
  RETURN_IF_CUDA_ERROR("event", cudaEventSynchronize(stream->last_stamp_));
  stream->last_time_ = std::chrono::steady_clock::now();
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
  for (const Mark& m : pending_) (void)cudaEventDestroy(m.event);
  for (const Errand& e : errands_) {
    if (e.at != nullptr) (void)cudaEventDestroy(e.at);
  }
  for (const cudaEvent_t event : spare_events_) (void)cudaEventDestroy(event);
  for (const cudaEvent_t event : spare_stamps_) (void)cudaEventDestroy(event);
  if (last_stamp_ != nullptr) (void)cudaEventDestroy(last_stamp_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

void CudaStream::Fail(absl::Status why) {
  if (failed_.ok()) failed_ = std::move(why);
}

void CudaStream::Check(std::string_view operation, cudaError_t error) {
  if (error != cudaSuccess) Fail(CudaError(operation, error));
}

cudaEvent_t CudaStream::TakeEvent(std::vector<cudaEvent_t>& spare, unsigned flags) {
  cudaEvent_t event = nullptr;
  if (!spare.empty()) {
    event = spare.back();
    spare.pop_back();
  } else {
    Check("event", cudaEventCreateWithFlags(&event, flags));
  }
  return event;
}

void CudaStream::WhenPassed(std::function<absl::Status()> fn) {
  errands_.push_back({.mark = marks_ + 1, .fn = std::move(fn)});
}

void CudaStream::Stamp(std::chrono::steady_clock::time_point* when) {
  const cudaEvent_t event = TakeEvent(spare_stamps_, cudaEventDefault);
  if (event == nullptr) return;
  Check("time stamp", cudaEventRecord(event, stream_));
  errands_.push_back({.mark = marks_ + 1, .at = event, .when = when});
}

void CudaStream::Enqueue(std::function<absl::Status()> fn) {
  struct Work {
    std::function<absl::Status()> fn;
    std::shared_ptr<HostWork> shared;
  };
  const cudaHostFn_t run = [](void* argument) {
    const std::unique_ptr<Work> work(static_cast<Work*>(argument));
    {
      absl::MutexLock lock(&work->shared->mu);
      if (!work->shared->error.ok()) return;
    }
    absl::Status status = work->fn();
    absl::MutexLock lock(&work->shared->mu);
    if (work->shared->error.ok()) work->shared->error = std::move(status);
  };
  auto* const work = new Work{std::move(fn), host_work_};
  const cudaError_t error = cudaLaunchHostFunc(stream_, run, work);
  if (error != cudaSuccess) delete work;
  Check("host function", error);
}

uint64_t CudaStream::Record() {
  const cudaEvent_t event = TakeEvent(spare_events_, cudaEventDisableTiming);
  ++marks_;
  if (event != nullptr) {
    Check("mark", cudaEventRecord(event, stream_));
    pending_.push_back({marks_, event});
  }
  return marks_;
}

void CudaStream::AskGuard() {
  if (failed_.ok() && guard_) failed_ = guard_();
}

absl::Status CudaStream::Wait(uint64_t mark) {
  while (!pending_.empty() && pending_.front().mark <= mark) {
    const Mark next = pending_.front();
    pending_.pop_front();
    Check("waiting for the GPU", cudaEventSynchronize(next.event));
    spare_events_.push_back(next.event);
  }
  AskGuard();
  if (failed_.ok()) RunErrands(mark);
  if (failed_.ok()) {
    absl::MutexLock lock(&host_work_->mu);
    failed_ = host_work_->error;
  }
  return failed_;
}

absl::Status CudaStream::Synchronize() {
  Check("waiting for the GPU", cudaStreamSynchronize(stream_));
  Wait(marks_).IgnoreError();
  if (failed_.ok()) {
    RunErrands(marks_ + 1);
  } else {
    for (const Errand& e : errands_) {
      if (e.at != nullptr) spare_stamps_.push_back(e.at);
    }
    errands_.clear();
  }
  absl::MutexLock lock(&host_work_->mu);
  host_work_->error = absl::OkStatus();
  return std::exchange(failed_, absl::OkStatus());
}

void CudaStream::RunErrands(uint64_t mark) {
  while (!errands_.empty() && errands_.front().mark <= mark) {
    Errand errand = std::move(errands_.front());
    errands_.pop_front();
    if (errand.fn) {
      if (absl::Status done = errand.fn(); !done.ok()) Fail(std::move(done));
      continue;
    }
    float milliseconds = 0;
    Check("time stamp", cudaEventElapsedTime(&milliseconds, last_stamp_, errand.at));
    last_time_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<float, std::milli>(milliseconds));
    *errand.when = last_time_;
    spare_stamps_.push_back(std::exchange(last_stamp_, errand.at));
  }
}

}  // namespace lapidary
