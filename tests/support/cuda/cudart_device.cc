#include "tests/support/cuda/cudart_device.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "kernels/simt/report.h"
#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_memory.h"
#include "tests/support/cuda/cudart_stream.h"

namespace lapidary::standin {
namespace {

constexpr int kMostDevices = 16;

struct Devices {
  Device device[kMostDevices];
  std::atomic<cudaError_t> sticky[kMostDevices] = {};
  std::mutex mu;
  std::set<std::pair<int, int>> peers;  // (device, peer) enabled
};
Devices& All() {
  static Devices* devices = [] {
    auto* d = new Devices;
    for (int i = 0; i < kMostDevices; ++i) d->device[i].index = i;
    return d;
  }();
  return *devices;
}

thread_local int current_device = 0;

bool IsDevice(int i) { return i >= 0 && i < GetConfig().devices; }

int AttributeOf(const ChipSpec& chip, cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return chip.shared_optin;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return chip.shared_processor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return chip.threads_processor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return chip.blocks_processor;
    case cudaDevAttrMultiProcessorCount:
      return chip.processors;
    case cudaDevAttrComputeCapabilityMajor:
      return chip.capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return chip.capability % 10;
    case cudaDevAttrL2CacheSize:
      return 50 << 20;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrStreamPrioritiesSupported:
      return 1;
    case cudaDevAttrAsyncEngineCount:
      return 2;
    case cudaDevAttrClockRate:
      return 1'755'000;
    default:
      return 0;
  }
}

}  // namespace

Device& GetDevice(int index) { return All().device[index]; }
int CurrentDevice() { return current_device; }
cudaError_t StickyError(int device) { return All().sticky[device]; }
void SetStickyError(int device, cudaError_t error) {
  cudaError_t none = cudaSuccess;
  All().sticky[device].compare_exchange_strong(none, error);
}

}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  // Without a driver the count stays unwritten, as with the real library.
  if (!GetConfig().driver) return Return(cudaErrorInsufficientDriver);
  if (!count) return Return(cudaErrorInvalidValue);
  *count = GetConfig().devices;
  return Return(*count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  LAPIDARY_RETURN_IF(Unusable());
  if (!IsDevice(device)) return Return(cudaErrorInvalidDevice);
  current_device = device;
  return Return(StickyError(device));
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  LAPIDARY_RETURN_IF(Unusable());
  return Return(IsDevice(device) ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  LAPIDARY_RETURN_IF(Unusable());
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = GetConfig().driver ? CUDART_VERSION : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  LAPIDARY_RETURN_IF(Unusable());
  if (!IsDevice(device)) return Return(cudaErrorInvalidDevice);
  *value = AttributeOf(GetConfig().chip, attribute);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  LAPIDARY_RETURN_IF(Unusable());
  if (!IsDevice(device)) return Return(cudaErrorInvalidDevice);
  const ChipSpec& chip = GetConfig().chip;
  *p = {};
  snprintf(p->name, sizeof p->name, "%s", chip.name);
  memset(p->uuid.bytes, device + 1, sizeof p->uuid.bytes);
  p->totalGlobalMem = GetConfig().memory_bytes;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = static_cast<size_t>(chip.shared_optin);
  p->sharedMemPerMultiprocessor = static_cast<size_t>(chip.shared_processor);
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = chip.capability / 10;
  p->minor = chip.capability % 10;
  p->multiProcessorCount = chip.processors;
  p->maxThreadsPerMultiProcessor = chip.threads_processor;
  p->maxBlocksPerMultiProcessor = chip.blocks_processor;
  p->l2CacheSize = 50 << 20;
  p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = 1;
  p->asyncEngineCount = 2;
  p->pciBusID = device + 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  LAPIDARY_RETURN_IF(Unusable());
  if (!IsDevice(device)) return Return(cudaErrorInvalidDevice);
  snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* text) {
  LAPIDARY_RETURN_IF(Unusable());
  unsigned bus = 0;
  if (!device || !text || sscanf(text, "0000:%2x:00.0", &bus) != 1 ||
      !IsDevice(static_cast<int>(bus) - 1)) {
    return Return(cudaErrorInvalidValue);
  }
  *device = static_cast<int>(bus) - 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  LAPIDARY_RETURN_IF(Enter());
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) { return Return(Unusable()); }
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return Return(Enter()); }

cudaError_t cudaDeviceSynchronize() {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  RunDevice(current_device);
  return Return(StickyError(current_device));
}
// The real function needs a new process after a sticky error; tests may go on.
cudaError_t cudaDeviceReset() {
  LAPIDARY_RETURN_IF(Unusable());
  DropDevice(current_device);
  ResetDeviceMemory(current_device);
  All().sticky[current_device] = cudaSuccess;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  LAPIDARY_RETURN_IF(Unusable());
  if (!IsDevice(device) || !IsDevice(peer)) return Return(cudaErrorInvalidDevice);
  *can = device != peer && GetConfig().peers;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  if (flags != 0) return Return(cudaErrorInvalidValue);
  if (!IsDevice(peer) || peer == current_device) return Return(cudaErrorInvalidDevice);
  std::lock_guard lock(All().mu);
  return Return(All().peers.insert({current_device, peer}).second
                    ? cudaSuccess
                    : cudaErrorPeerAccessAlreadyEnabled);
}
cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  LAPIDARY_RETURN_IF(Enter());
  if (!IsDevice(peer)) return Return(cudaErrorInvalidDevice);
  std::lock_guard lock(All().mu);
  return Return(All().peers.erase({current_device, peer}) ? cudaSuccess
                                                          : cudaErrorPeerAccessNotEnabled);
}

}  // extern "C"
