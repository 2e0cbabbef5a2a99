// The CUDA runtime's copies and memsets. Directions are checked, ranges must lie in one allocation.
//
// From pageable host memory the bytes are taken before the call returns, and may reach the device
// after it has, from cudaMemcpy as well: streams that do not wait for the default one would read
// what was there before, on a GPU too. To pageable host memory the call waits. Neither can be
// recorded here (the real library is laxer).
#include <cuda_runtime_api.h>

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/simt/monitor.h"
#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_memory.h"
#include "tests/support/cuda/cudart_stream.h"

// ThreadSanitizer does not look at what memmove and memset touch (TSAN_OPTIONS in
// cmake/targets.cmake), but shall at what the device copies: pinned memory is the host's, too.
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(const void* p, size_t bytes);  // in libtsan
extern "C" void __tsan_write_range(const void* p, size_t bytes);
#define LAPIDARY_TSAN_READ(p, n) __tsan_read_range(p, n)
#define LAPIDARY_TSAN_WRITE(p, n) __tsan_write_range(p, n)
#else
#define LAPIDARY_TSAN_READ(p, n) (void)(p), (void)(n)
#define LAPIDARY_TSAN_WRITE(p, n) (void)(p), (void)(n)
#endif

namespace lapidary::standin {
namespace {

// `height` rows of `width` bytes, `pitch` apart.
struct Rows {
  unsigned char* p = nullptr;
  size_t pitch = 0, width = 0, height = 0;
  size_t span() const { return height == 0 ? 0 : (height - 1) * pitch + width; }
};

enum class Place { kPageable, kPinned, kDevice };

// Where the rows lie; an error if they leave what they begin in.
cudaError_t Locate(const Rows& rows, Place* place) {
  Allocation a;
  if (!FindAllocation(rows.p, &a)) {
    *place = Place::kPageable;
    return IsDeviceAddress(rows.p) ? cudaErrorInvalidValue : cudaSuccess;
  }
  *place = a.pinned ? Place::kPinned : Place::kDevice;
  const size_t offset = reinterpret_cast<uintptr_t>(rows.p) - a.begin;
  return offset + rows.span() <= a.bytes ? cudaSuccess : cudaErrorInvalidValue;
}

bool Matches(cudaMemcpyKind kind, Place to, Place from) {
  const bool to_device = to == Place::kDevice, from_device = from == Place::kDevice;
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

void Move(const Rows& to, const Rows& from, bool from_host) {
  for (size_t r = 0; r < to.height; ++r) {
    memmove(to.p + r * to.pitch, from.p + r * from.pitch, to.width);
    LAPIDARY_TSAN_READ(from.p + r * from.pitch, to.width);
    NoteDeviceWrite(to.p + r * to.pitch, to.width, from_host ? nullptr : from.p + r * from.pitch);
  }
}

cudaError_t Copy(const Rows& to, const Rows& from, cudaMemcpyKind kind, cudaStream_t stream,
                 bool wait) {
  if (const cudaError_t e = Enter()) return e;
  if (wait) LAPIDARY_RETURN_IF(RefuseUnsafeCall());
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
    return Return(cudaErrorInvalidMemcpyDirection);
  }
  if (to.width > to.pitch || from.width > from.pitch) return Return(cudaErrorInvalidPitchValue);
  if (to.span() == 0) return cudaSuccess;
  Place to_place, from_place;
  LAPIDARY_RETURN_IF(Locate(to, &to_place));
  LAPIDARY_RETURN_IF(Locate(from, &from_place));
  if (!Matches(kind, to_place, from_place)) return Return(cudaErrorInvalidValue);
  const bool pageable = to_place == Place::kPageable || from_place == Place::kPageable;
  if (pageable) LAPIDARY_RETURN_IF(RefuseOnCapturing(*s));

  const bool staged = from_place == Place::kPageable;
  if (staged) {
    if (wait) LAPIDARY_RETURN_IF(Synchronize(Here(s)));
    Rows stage{nullptr, from.width, from.width, from.height};
    const auto bytes = std::make_shared<std::vector<unsigned char>>(stage.span());
    stage.p = bytes->data();
    Move(stage, from, true);
    LAPIDARY_RETURN_IF(Push(s, {.name = "copy from pageable memory",
                                .make = Once([=] { Move(to, stage, true), (void)bytes; })}));
  } else {
    const bool from_host = from_place != Place::kDevice;
    LAPIDARY_RETURN_IF(Push(s, {.name = "copy", .make = Once([=] { Move(to, from, from_host); })}));
  }
  if ((wait && !staged) || to_place == Place::kPageable) return Return(Synchronize(Here(s)));
  return cudaSuccess;
}

Rows One(const void* p, size_t bytes) {
  return {static_cast<unsigned char*>(const_cast<void*>(p)), bytes, bytes, 1};
}
Rows Many(const void* p, size_t pitch, size_t width, size_t height) {
  return {static_cast<unsigned char*>(const_cast<void*>(p)), pitch, width, height};
}

cudaError_t Set(const Rows& to, int value, cudaStream_t stream) {
  if (const cudaError_t e = Enter()) return e;
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  if (to.width > to.pitch) return Return(cudaErrorInvalidPitchValue);
  if (to.span() == 0) return cudaSuccess;
  Place place;
  LAPIDARY_RETURN_IF(Locate(to, &place));
  if (place == Place::kPageable) return Return(cudaErrorInvalidValue);
  return Return(Push(s, {.name = "memset", .make = Once([=] {
                                             for (size_t r = 0; r < to.height; ++r) {
                                               memset(to.p + r * to.pitch, value, to.width);
                                               NoteDeviceWrite(to.p + r * to.pitch, to.width);
                                             }
                                           })}));
}

}  // namespace
}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Copy(One(to, bytes), One(from, bytes), kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Copy(One(to, bytes), One(from, bytes), kind, stream, false);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return Copy(Many(to, to_pitch, width, height), Many(from, from_pitch, width, height), kind,
              nullptr, true);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return Copy(Many(to, to_pitch, width, height), Many(from, from_pitch, width, height), kind,
              stream, false);
}
// Follows all work of both devices.
cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device,
                           size_t bytes) {
  LAPIDARY_RETURN_IF(Enter());
  RunDevice(from_device);
  RunDevice(to_device);
  return Copy(One(to, bytes), One(from, bytes), cudaMemcpyDeviceToDevice, nullptr, true);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                cudaStream_t stream) {
  return Copy(One(to, bytes), One(from, bytes), cudaMemcpyDeviceToDevice, stream, false);
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return Set(One(p, bytes), value, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return Set(One(p, bytes), value, stream);
}
cudaError_t cudaMemset2D(void* p, size_t pitch, int value, size_t width, size_t height) {
  return Set(Many(p, pitch, width, height), value, nullptr);
}
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return Set(Many(p, pitch, width, height), value, stream);
}

}  // extern "C"

namespace lapidary::standin {

bool IsDeviceUsable(const void* p, size_t bytes) {
  Place place;
  return Locate(One(p, bytes), &place) == cudaSuccess && place != Place::kPageable;
}

void NoteDeviceWrite(const void* p, size_t bytes, const void* from) {
  LAPIDARY_TSAN_WRITE(p, bytes);
  if (simt::monitor) simt::monitor->OnHostWrite(p, bytes, from);
}

}  // namespace lapidary::standin
