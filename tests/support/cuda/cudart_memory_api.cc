// The CUDA runtime's functions that allocate.
#include <cuda_runtime_api.h>

#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_memory.h"
#include "tests/support/cuda/cudart_stream.h"

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  if (!p) return Return(cudaErrorInvalidValue);
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  return Return(AllocateDevice(CurrentDevice(), bytes, p));
}
cudaError_t cudaMallocPitch(void** p, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return cudaMalloc(p, *pitch * height);
}
// Waits for all work of the device, as the real one does.
cudaError_t cudaFree(void* p) {
  LAPIDARY_RETURN_IF(Enter());
  if (!p) return cudaSuccess;
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  Allocation a;
  if (!FindAllocation(p, &a) || a.pinned) return Return(cudaErrorInvalidValue);
  RunDevice(a.device);
  LAPIDARY_RETURN_IF(FreeDevice(p));
  return Return(StickyError(a.device));
}

// Stream-ordered: the memory is there at once, and gone when the stream comes to it.
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  LAPIDARY_RETURN_IF(RefuseOnCapturing(*s));
  *p = nullptr;
  return bytes == 0 ? cudaSuccess : Return(AllocateDevice(s->device, bytes, p));
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  LAPIDARY_RETURN_IF(Enter());
  if (!p) return cudaSuccess;
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  LAPIDARY_RETURN_IF(RefuseOnCapturing(*s));
  Allocation a;
  if (!FindAllocation(p, &a) || a.pinned) return Return(cudaErrorInvalidValue);
  return Return(Push(s, {.name = "free", .make = Once([p] { FreeDevice(p); })}));
}

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  constexpr unsigned kKnown =
      cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
  if (!p || flags & ~kKnown) return Return(cudaErrorInvalidValue);
  *p = nullptr;
  return bytes == 0 ? cudaSuccess : Return(AllocatePinned(bytes, flags, p));
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void* p) {
  LAPIDARY_RETURN_IF(Enter());
  if (!p) return cudaSuccess;
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  RunDevice(CurrentDevice());
  return Return(FreePinned(p));
}
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  if (!p || bytes == 0) return Return(cudaErrorInvalidValue);
  return Return(RegisterHost(p, bytes, flags));
}
cudaError_t cudaHostUnregister(void* p) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  RunDevice(CurrentDevice());
  return Return(UnregisterHost(p));
}
// One address space: the device uses the host's pointer.
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  Allocation a;
  if (flags != 0 || !FindAllocation(host, &a) || !a.pinned) return Return(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaHostGetFlags(unsigned* flags, void* host) {
  LAPIDARY_RETURN_IF(Enter());
  Allocation a;
  if (!FindAllocation(host, &a) || !a.pinned) return Return(cudaErrorInvalidValue);
  *flags = a.flags | cudaHostAllocMapped;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  LAPIDARY_RETURN_IF(Enter());
  *total = GetConfig().memory_bytes;
  *free = *total - DeviceBytesUsed(CurrentDevice());
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  LAPIDARY_RETURN_IF(Enter());
  *attributes = {};
  Allocation a;
  if (!FindAllocation(p, &a)) {
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -2;
    attributes->hostPointer = const_cast<void*>(p);
    return cudaSuccess;
  }
  attributes->type = a.pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->device = a.pinned ? CurrentDevice() : a.device;
  attributes->devicePointer = const_cast<void*>(p);
  attributes->hostPointer = a.pinned ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}

}  // extern "C"
