// The CUDA runtime's functions for device memory of other processes. A handle says where the
// process that offers the memory keeps its file: it must live when the handle is opened.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_memory.h"
#include "tests/support/cuda/cudart_stream.h"

using namespace lapidary::standin;

namespace {

struct Handle {
  char magic[8];
  int32_t pid, file;
  uint64_t offset, bytes;
  uint64_t inode;  // of the file: its number may be another's by then
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t));
constexpr char kMagic[8] = "lapimem";

// Files that this process maps, and where.
struct Opened {
  std::mutex mu;
  std::set<std::pair<uint64_t, void*>> all;
};
Opened& AllOpened() {
  static Opened* opened = new Opened;
  return *opened;
}

uint64_t Inode(int file) {
  struct stat about {};
  return fstat(file, &about) == 0 ? about.st_ino : 0;
}

}  // namespace

extern "C" {

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* to, void* p) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  Allocation a;
  if (!to || !FindAllocation(p, &a) || a.pinned) return Return(cudaErrorInvalidValue);
  SharedMemory shared;
  {
    std::lock_guard running(GetDevice(a.device).running);
    LAPIDARY_RETURN_IF(ShareDevice(p, &shared));
  }
  Handle handle{.pid = getpid(),
                .file = shared.file,
                .offset = shared.offset,
                .bytes = shared.bytes,
                .inode = Inode(shared.file)};
  memcpy(handle.magic, kMagic, sizeof kMagic);
  memset(to, 0, sizeof *to);
  memcpy(to, &handle, sizeof handle);
  return cudaSuccess;
}

// Once each, and not one's own.
cudaError_t cudaIpcOpenMemHandle(void** p, cudaIpcMemHandle_t from, unsigned flags) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  if (!p || flags != cudaIpcMemLazyEnablePeerAccess) return Return(cudaErrorInvalidValue);
  Handle handle;
  memcpy(&handle, &from, sizeof handle);
  if (memcmp(handle.magic, kMagic, sizeof kMagic) != 0) {
    return Return(cudaErrorInvalidResourceHandle);
  }
  if (handle.pid == getpid()) return Return(cudaErrorDeviceUninitialized);
  std::lock_guard lock(AllOpened().mu);
  for (const auto& entry : AllOpened().all) {
    if (entry.first == handle.inode) return Return(cudaErrorAlreadyMapped);
  }
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.file);
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0 || Inode(file) != handle.inode) {
    if (file >= 0) close(file);
    return Return(cudaErrorMapBufferObjectFailed);
  }
  const cudaError_t mapped =
      MapShared(CurrentDevice(), {.file = file, .offset = handle.offset, .bytes = handle.bytes}, p);
  close(file);
  if (mapped == cudaSuccess) AllOpened().all.insert({handle.inode, *p});
  return Return(mapped);
}

cudaError_t cudaIpcCloseMemHandle(void* p) {
  LAPIDARY_RETURN_IF(Enter());
  LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  Allocation a;
  if (!FindAllocation(p, &a) || !a.imported) return Return(cudaErrorInvalidValue);
  RunDevice(a.device);
  std::lock_guard lock(AllOpened().mu);
  LAPIDARY_RETURN_IF(UnmapShared(p));
  std::erase_if(AllOpened().all, [p](const auto& entry) { return entry.second == p; });
  return Return(StickyError(a.device));
}

}  // extern "C"
