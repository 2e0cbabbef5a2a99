// Device memory: real memory that host code cannot touch except while device work runs, with a
// guard page behind each allocation, filled with 0xff, and gone for good once freed. And the host
// memory that is pinned.
#pragma once
#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace lapidary::standin {

struct Allocation {
  uintptr_t begin = 0;
  size_t bytes = 0;
  int device = 0;                      // of device memory
  bool pinned = false, owned = false;  // host memory; by cudaHostAlloc, else registered
  unsigned flags = 0;                  // of cudaHostAlloc or cudaHostRegister
  int file = -1;                       // device memory that other processes may map
  bool imported = false;               // another process's device memory
};

cudaError_t AllocateDevice(int device, size_t bytes, void** p);
// cudaErrorInvalidValue if p is not the beginning of an allocation.
cudaError_t FreeDevice(void* p);
cudaError_t AllocatePinned(size_t bytes, unsigned flags, void** p);
cudaError_t FreePinned(void* p);
cudaError_t RegisterHost(void* p, size_t bytes, unsigned flags);
cudaError_t UnregisterHost(void* p);

// Device memory of several processes: a file, which each maps. It begins `offset` bytes into it.
// The device does nothing meanwhile. cudaErrorInvalidValue if p is not the beginning of an own
// allocation.
struct SharedMemory {
  int file = -1;
  size_t offset = 0, bytes = 0;
};
cudaError_t ShareDevice(void* p, SharedMemory* shared);
// Maps another process's into the addresses of a device.
cudaError_t MapShared(int device, const SharedMemory& shared, void** p);
cudaError_t UnmapShared(void* p);

size_t DeviceBytesUsed(int device);
// What contains the address; false: pageable host memory, or nothing.
bool FindAllocation(const void* p, Allocation* found);
// Whether the address is, or was, device memory.
bool IsDeviceAddress(const void* p);
// Frees all of a device's memory.
void ResetDeviceMemory(int device);

// Device memory is accessible to the calling thread while one lives (with page protection: to all
// threads).
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

// The other way round: a host function inside device work.
class NoDeviceAccess {
 public:
  NoDeviceAccess();
  ~NoDeviceAccess();
};

// For a message about a fault: "is 16 bytes behind device memory of 4096 bytes", or "".
void DescribeAddress(const void* p, char* text, size_t size);

}  // namespace lapidary::standin
