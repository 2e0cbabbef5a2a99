// What the stand-ins of NCCL and cuBLASLt ask of the CUDA runtime stand-in: work in a stream's
// order.
#pragma once
#include <driver_types.h>

#include <functional>
#include <memory>

namespace lapidary::standin {

// A piece of work of a stream. Run on any thread, one call at a time, with access to device memory.
class Work {
 public:
  virtual ~Work() = default;
  // Does what can be done now; true when all is done. Called again a little later otherwise, and
  // other streams go on between the calls.
  virtual bool Run() = 0;
};
// Makes the work, once for every time it is to be done (a recorded graph does it often).
using WorkFactory = std::function<std::unique_ptr<Work>()>;

// `name`: for messages. Recorded if the stream is being captured.
cudaError_t Enqueue(cudaStream_t stream, const char* name, WorkFactory factory);
// The same for work that is done in one go.
cudaError_t EnqueueTask(cudaStream_t stream, const char* name, std::function<void()> task);

// The device of the calling thread.
int CurrentDeviceIndex();
// Poisons the device that the calling work runs on: what a GPU does on a fault.
void FailDevice(cudaError_t error);

// [p, p + bytes) is memory that device work may use: device memory or pinned host memory.
bool IsDeviceUsable(const void* p, size_t bytes);
// Device work has written, `from` (or null) being device memory that was copied: for the checker
// and ThreadSanitizer.
void NoteDeviceWrite(const void* p, size_t bytes, const void* from = nullptr);

}  // namespace lapidary::standin
