#include "tests/support/cuda/cudart_stream.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <thread>
#include <unordered_map>

#include "kernels/simt/failure.h"
#include "kernels/simt/fault.h"
#include "kernels/simt/policy.h"
#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_memory.h"
#include "tests/support/cuda/cudart_progress.h"

namespace lapidary::standin {
namespace {

struct Queues {
  std::mutex mu;
  std::condition_variable changed;
  std::vector<std::shared_ptr<Stream>> streams;  // all, with legacy ones
  std::unordered_map<cudaStream_t, std::shared_ptr<Stream>> handles;
  std::unordered_map<int, std::shared_ptr<Stream>> legacy;  // by device
  uint64_t last_id = 0;
};
Queues& All() {
  static Queues* queues = new Queues;
  return *queues;
}

thread_local int running_device = -1;

cudaStream_t Handle(const Stream* s) {
  return reinterpret_cast<cudaStream_t>(const_cast<Stream*>(s));
}

std::shared_ptr<Stream> LegacyLocked(int device) {
  auto& s = All().legacy[device];
  if (!s) {
    s = std::make_shared<Stream>();
    s->device = device;
    s->legacy = true;
    s->id = ++All().last_id;
    All().streams.push_back(s);
  }
  return s;
}

// One of CUDA's own handles, else the null pointer.
std::shared_ptr<Stream> PerThreadStream() {
  static thread_local std::unordered_map<int, std::shared_ptr<Stream>> own;
  auto& s = own[CurrentDevice()];
  if (!s) {
    s = std::make_shared<Stream>();
    s->device = CurrentDevice();
    AddStream(s);
  }
  return s;
}

// True when the operation is done. Without the queues' mutex.
bool RunOp(int device_index, Op& op) {
  if (StickyError(device_index) != cudaSuccess) return true;
  if (op.make && !op.work) op.work = op.make();
  if (!op.work) return true;
  if (op.host_function) {
    HostFunctionScope scope;
    return op.work->Run();
  }
  std::lock_guard running(GetDevice(device_index).running);
  DeviceAccess access;
  const int outer = running_device;
  running_device = device_index;
  const bool done = op.work->Run();
  running_device = outer;
  const bool fault = simt::TakeFault();
  if (!simt::TakeFailures().empty()) {
    SetStickyError(device_index, fault ? cudaErrorIllegalAddress : cudaErrorLaunchFailure);
  }
  return done;
}

// Runs the first operation of a stream that is not busy; whether it is done now.
bool RunHead(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& s) {
  s->busy = true;
  Op& op = s->queue.front();  // stays where it is while others append
  lock.unlock();
  const bool done = RunOp(s->device, op);
  std::unique_ptr<Work> finished = done ? std::move(op.work) : nullptr;
  lock.lock();
  s->busy = false;
  if (done) {
    if (op.record) op.record->time_ms = NowMs();
    s->urgent -= op.urgent;
    Op last = std::move(s->queue.front());
    s->queue.pop_front();
    ++s->done;
    s->waiting_since = NowMs();
    if (s->removed && s->queue.empty()) std::erase(All().streams, s);
    All().changed.notify_all();
    lock.unlock();  // what the operation held goes without the mutex
    last = {};
    finished.reset();
    lock.lock();
  }
  return done;
}

bool DoneLocked(const Point& p) { return !p.stream || p.stream->done >= p.position; }

// The stream whose next operation `s` waits for: itself, or one that it depends on.
std::shared_ptr<Stream> Runnable(std::shared_ptr<Stream> s) {
  for (;;) {
    const auto& after = s->queue.front().after;
    const auto unmet =
        std::find_if(after.begin(), after.end(), [](const Point& p) { return !DoneLocked(p); });
    if (unmet == after.end()) return s;
    s = unmet->stream;
  }
}

// Waits a little longer each time nothing could be done.
class Backoff {
 public:
  void Wait(std::unique_lock<std::mutex>& lock) {
    All().changed.wait_for(lock, std::chrono::microseconds(pause_us_));
    pause_us_ = std::min(2 * pause_us_, 500);
  }
  void Reset() { pause_us_ = 10; }

 private:
  int pause_us_ = 10;
};

void RunUntilLocked(std::unique_lock<std::mutex>& lock, const Point& point) {
  Backoff backoff;
  while (!DoneLocked(point)) {
    const auto s = Runnable(point.stream);
    if (!s->busy && RunHead(lock, s)) {
      backoff.Reset();
    } else {
      backoff.Wait(lock);
    }
  }
}

void AddOrder(const Stream& s, Op& op) {
  // The legacy stream waits for all blocking streams, and they for it.
  for (const auto& other : All().streams) {
    if (other->device != s.device || other.get() == &s || other->queue.empty()) continue;
    const bool ordered = s.legacy ? !(other->flags & cudaStreamNonBlocking)
                                  : other->legacy && !(s.flags & cudaStreamNonBlocking);
    if (ordered) op.after.push_back({other, other->enqueued});
  }
}

}  // namespace

std::mutex& QueueMutex() { return All().mu; }

double NowMs() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::shared_ptr<Stream> LegacyStream(int device) {
  std::lock_guard lock(All().mu);
  return LegacyLocked(device);
}

std::shared_ptr<Stream> FindStream(cudaStream_t handle) {
  if (handle == cudaStreamPerThread) return PerThreadStream();
  std::lock_guard lock(All().mu);
  if (!handle || handle == cudaStreamLegacy) return LegacyLocked(CurrentDevice());
  const auto it = All().handles.find(handle);
  return it == All().handles.end() ? nullptr : it->second;
}

cudaStream_t AddStream(std::shared_ptr<Stream> stream) {
  std::lock_guard lock(All().mu);
  stream->id = ++All().last_id;
  const cudaStream_t handle = Handle(stream.get());
  All().streams.push_back(stream);
  All().handles[handle] = std::move(stream);
  return handle;
}

void RemoveStream(cudaStream_t handle) {
  std::lock_guard lock(All().mu);
  const auto it = All().handles.find(handle);
  if (it == All().handles.end()) return;
  it->second->removed = true;
  if (it->second->queue.empty()) std::erase(All().streams, it->second);
  All().handles.erase(it);
}

cudaError_t Push(const std::shared_ptr<Stream>& stream, Op op) {
  std::unique_lock lock(All().mu);
  if (stream->capture) return CaptureOp(*stream, std::move(op));
  if (stream->legacy) {
    if (const cudaError_t e = RefuseLegacyDuringCapture(All().streams, stream->device)) return e;
  }
  AddOrder(*stream, op);
  stream->urgent += op.urgent;
  if (stream->queue.empty()) stream->waiting_since = NowMs();
  stream->queue.push_back(std::move(op));
  ++stream->enqueued;
  lock.unlock();
  StartProgress();
  return cudaSuccess;
}

Point Here(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(All().mu);
  return {stream, stream->enqueued};
}

bool IsDone(const Point& point) {
  std::lock_guard lock(All().mu);
  return DoneLocked(point);
}

void RunUntil(const Point& point) {
  if (!point.stream) return;
  std::unique_lock lock(All().mu);
  RunUntilLocked(lock, point);
}

cudaError_t Synchronize(const Point& point) {
  RunUntil(point);
  return point.stream ? StickyError(point.stream->device) : cudaSuccess;
}

void RunOne(const std::shared_ptr<Stream>& stream) {
  std::unique_lock lock(All().mu);
  if (stream->queue.empty()) return;
  const auto s = Runnable(stream);
  if (!s->busy) RunHead(lock, s);
}

void RunDevice(int device) {
  std::unique_lock lock(All().mu);
  std::vector<Point> points;
  for (const auto& s : All().streams) {
    if (s->device == device) points.push_back({s, s->enqueued});
  }
  if (simt::CurrentPolicy().order == simt::Order::kReverse) {
    std::reverse(points.begin(), points.end());
  }
  // Streams take turns: one that hangs does not keep the others from going on.
  Backoff backoff;
  for (;;) {
    bool all_done = true, moved = false;
    for (const Point& p : points) {
      if (DoneLocked(p)) continue;
      all_done = false;
      const auto s = Runnable(p.stream);
      if (!s->busy && RunHead(lock, s)) moved = true;
    }
    if (all_done) return;
    if (moved) {
      backoff.Reset();
    } else {
      backoff.Wait(lock);
    }
  }
}

void DropDevice(int device) {
  std::unique_lock lock(All().mu);
  for (const auto& s : All().streams) {
    if (s->device != device) continue;
    while (s->busy) All().changed.wait_for(lock, std::chrono::milliseconds(1));
    s->done = s->enqueued;
    s->urgent = 0;
    s->queue.clear();
  }
}

bool RunOverdue(double urgent_ms, double other_ms) {
  std::unique_lock lock(All().mu);
  const auto streams = All().streams;  // changes while operations run
  bool queued = false;
  for (const auto& s : streams) {
    if (s->queue.empty()) continue;
    queued = true;
    if (s->busy) continue;
    const double patience = s->urgent > 0 ? urgent_ms : other_ms;
    if (NowMs() - s->waiting_since < patience) continue;
    const auto next = Runnable(s);
    if (!next->busy) RunHead(lock, next);
  }
  return queued;
}

cudaError_t Enqueue(cudaStream_t handle, const char* name, WorkFactory factory) {
  const auto stream = FindStream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  return Push(stream, {.name = name, .make = std::move(factory), .urgent = true});
}

cudaError_t EnqueueTask(cudaStream_t handle, const char* name, std::function<void()> task) {
  const auto stream = FindStream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  return Push(stream, {.name = name, .make = Once(std::move(task))});
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks): std::function frees it

WorkFactory Once(std::function<void()> task) {
  class Task : public Work {
   public:
    explicit Task(std::function<void()> task) : task_(std::move(task)) {}
    bool Run() override {
      task_();
      return true;
    }

   private:
    const std::function<void()> task_;
  };
  return [task = std::move(task)] { return std::make_unique<Task>(task); };
}

int CurrentDeviceIndex() { return CurrentDevice(); }

void FailDevice(cudaError_t error) {
  SetStickyError(running_device >= 0 ? running_device : CurrentDevice(), error);
}

}  // namespace lapidary::standin
