// The CUDA runtime's streams and events.
#include <cuda_runtime_api.h>

#include <unordered_map>

#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_stream.h"

namespace lapidary::standin {
namespace {

struct Events {
  std::mutex mu;
  std::unordered_map<cudaEvent_t, std::shared_ptr<Event>> handles;
};
Events& All() {
  static Events* events = new Events;
  return *events;
}

std::shared_ptr<Event> FindEvent(cudaEvent_t handle) {
  std::lock_guard lock(All().mu);
  const auto it = All().handles.find(handle);
  return it == All().handles.end() ? nullptr : it->second;
}

cudaError_t CreateStream(cudaStream_t* handle, unsigned flags, int priority) {
  if (const cudaError_t e = Enter()) return e;
  if (!handle || flags & ~unsigned{cudaStreamNonBlocking}) return Return(cudaErrorInvalidValue);
  auto stream = std::make_shared<Stream>();
  stream->device = CurrentDevice();
  stream->flags = flags;
  stream->priority = priority < -5 ? -5 : priority > 0 ? 0 : priority;
  *handle = AddStream(std::move(stream));
  return cudaSuccess;
}

// Where the last record was; an error for an event of a capture.
cudaError_t Recorded(const Event& event, Point* point) {
  std::lock_guard lock(QueueMutex());
  if (event.capture) return cudaErrorCapturedEvent;
  *point = event.recorded;
  return cudaSuccess;
}

}  // namespace
}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* s) { return CreateStream(s, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return CreateStream(s, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  return CreateStream(s, flags, priority);
}
// Returns at once; what is queued still runs.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s || s->legacy) return Return(cudaErrorInvalidResourceHandle);
  RemoveStream(handle);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  LAPIDARY_RETURN_IF(RefuseOnCapturing(*s));
  return Return(Synchronize(Here(s)));
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  LAPIDARY_RETURN_IF(RefuseOnCapturing(*s));
  const Point here = Here(s);
  RunOne(s);
  LAPIDARY_RETURN_IF(StickyError(s->device));
  return Return(IsDone(here) ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  *flags = s->flags;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  *priority = s->priority;
  return cudaSuccess;
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  *device = s->device;
  return cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  *id = s->id;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  if (!function) return Return(cudaErrorInvalidValue);
  return Return(Push(s, {.name = "host function",
                         .make = Once([=] { function(data); }),
                         .host_function = true,
                         .urgent = true}));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  constexpr unsigned kKnown = cudaEventBlockingSync | cudaEventDisableTiming;
  if (!handle || flags & ~kKnown) return Return(cudaErrorInvalidValue);
  auto event = std::make_shared<Event>();
  event->flags = flags;
  event->device = CurrentDevice();
  *handle = reinterpret_cast<cudaEvent_t>(event.get());
  std::lock_guard lock(All().mu);
  All().handles[*handle] = std::move(event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  std::lock_guard lock(All().mu);
  return Return(All().handles.erase(handle) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  LAPIDARY_RETURN_IF(Enter());
  const auto event = FindEvent(handle);
  const auto s = FindStream(stream);
  if (!event || !s || event->device != s->device) return Return(cudaErrorInvalidResourceHandle);
  {
    std::lock_guard lock(QueueMutex());
    if (s->capture) {
      CaptureRecord(*s, *event);
      return cudaSuccess;
    }
    event->capture.reset();
  }
  LAPIDARY_RETURN_IF(Push(s, {.name = "event", .record = event}));
  std::lock_guard lock(QueueMutex());
  event->recorded = {s, s->enqueued};
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned flags) {
  return flags == 0 ? cudaEventRecord(handle, stream) : Return(cudaErrorInvalidValue);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  const auto event = FindEvent(handle);
  const auto s = FindStream(stream);
  if (!event || !s) return Return(cudaErrorInvalidResourceHandle);
  if (flags != 0) return Return(cudaErrorInvalidValue);
  Point recorded;
  {
    std::lock_guard lock(QueueMutex());
    if (s->capture || event->capture) return Return(CaptureWait(s, *event));
    recorded = event->recorded;
  }
  if (!recorded.stream) return cudaSuccess;  // never recorded: nothing to wait for
  return Return(Push(s, {.name = "wait for an event", .after = {recorded}}));
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto event = FindEvent(handle);
  if (!event) return Return(cudaErrorInvalidResourceHandle);
  Point point;
  LAPIDARY_RETURN_IF(Recorded(*event, &point));
  return Return(Synchronize(point));
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto event = FindEvent(handle);
  if (!event) return Return(cudaErrorInvalidResourceHandle);
  Point point;
  LAPIDARY_RETURN_IF(Recorded(*event, &point));
  if (IsDone(point)) return cudaSuccess;
  RunOne(point.stream);
  LAPIDARY_RETURN_IF(StickyError(point.stream->device));
  return Return(IsDone(point) ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start_handle, cudaEvent_t end_handle) {
  LAPIDARY_RETURN_IF(Enter());
  const auto start = FindEvent(start_handle), end = FindEvent(end_handle);
  if (!start || !end || (start->flags | end->flags) & cudaEventDisableTiming) {
    return Return(cudaErrorInvalidResourceHandle);
  }
  Point from, to;
  LAPIDARY_RETURN_IF(Recorded(*start, &from));
  LAPIDARY_RETURN_IF(Recorded(*end, &to));
  if (!from.stream || !to.stream) return Return(cudaErrorInvalidResourceHandle);
  if (!IsDone(from) || !IsDone(to)) return cudaErrorNotReady;
  std::lock_guard lock(QueueMutex());
  *ms = static_cast<float>(end->time_ms - start->time_ms);
  return cudaSuccess;
}

}  // extern "C"
