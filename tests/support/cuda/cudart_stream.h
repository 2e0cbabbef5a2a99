// Streams are lazy queues: an operation runs when somebody waits for it (or asks, one at a time),
// on the thread that does, or after a while on a thread of the runtime's own. So a missing
// synchronisation shows in every run, and yet everything happens in the end.
#pragma once
#include <driver_types.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/support/cuda/runtime.h"

namespace lapidary::standin {

struct Stream;
struct Capture;

// The first `position` operations of a stream.
struct Point {
  std::shared_ptr<Stream> stream;
  uint64_t position = 0;
};

struct Event {
  unsigned flags = 0;
  int device = 0;
  // Guarded by the queues' mutex.
  Point recorded;  // the last record; no stream: none yet
  double time_ms = 0;
  // Recorded in a capture.
  std::shared_ptr<Capture> capture;
  std::vector<size_t> capture_nodes;
};

struct Op {
  const char* name = "";
  WorkFactory make;            // null: nothing to do
  bool host_function = false;  // without access to device memory
  bool urgent = false;         // somebody outside waits for it: it does not lie long
  std::vector<Point> after;    // of other streams
  std::shared_ptr<Event> record;
  std::unique_ptr<Work> work;  // once it has begun
};

// Guarded by the queues' mutex, but for constants.
struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  uint64_t id = 0;
  bool legacy = false;
  bool removed = false;  // no handle any more
  std::deque<Op> queue;
  int urgent = 0;  // operations of the queue
  uint64_t enqueued = 0, done = 0;
  bool busy = false;         // the first operation is being run
  double waiting_since = 0;  // the queue has not moved since
  std::shared_ptr<Capture> capture;
  std::vector<size_t> capture_tail;  // nodes that the next one follows
};

// -- Handles. Null for one that is not, or no longer, valid. The null stream is the current
// device's legacy stream.
std::shared_ptr<Stream> FindStream(cudaStream_t handle);
cudaStream_t AddStream(std::shared_ptr<Stream> stream);
// What is queued still runs.
void RemoveStream(cudaStream_t handle);
std::shared_ptr<Stream> LegacyStream(int device);

// -- Work.
// Done in one go.
WorkFactory Once(std::function<void()> task);
// Appends; waits for nothing. Records where the stream is being captured.
cudaError_t Push(const std::shared_ptr<Stream>& stream, Op op);
Point Here(const std::shared_ptr<Stream>& stream);
bool IsDone(const Point& point);
// Runs until the point is done.
void RunUntil(const Point& point);
// Lets one operation run, as a query does.
void RunOne(const std::shared_ptr<Stream>& stream);
// All streams of a device.
void RunDevice(int device);
// A sticky error, or success.
cudaError_t Synchronize(const Point& point);

// Forgets all that is queued: after a device reset.
void DropDevice(int device);

// Guards Event and Stream fields.
std::mutex& QueueMutex();
double NowMs();

}  // namespace lapidary::standin
