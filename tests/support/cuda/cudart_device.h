// Devices: which is current, and what has poisoned one.
#pragma once
#include <driver_types.h>

#include <mutex>

namespace lapidary::standin {

struct Device {
  int index = 0;
  std::mutex running;  // one operation at a time
};
Device& GetDevice(int index);

// Of the calling thread.
int CurrentDevice();
cudaError_t SetCurrentDevice(int index);

// An error that every later call of the process on this device returns.
cudaError_t StickyError(int device);
void SetStickyError(int device, cudaError_t error);

}  // namespace lapidary::standin
