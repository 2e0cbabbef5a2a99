// Memory that kernels may touch, with the shadow of what happened to it. The runtime stand-in tells
// of allocations and of what the host writes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/simt/checker/shadow_memory.h"
#include "kernels/simt/monitor.h"

namespace lapidary::simt {

// Memory of zeros that takes room only where it is touched.
class LazyZeros {
 public:
  explicit LazyZeros(size_t bytes);
  ~LazyZeros();
  LazyZeros(const LazyZeros&) = delete;
  LazyZeros& operator=(const LazyZeros&) = delete;
  void* data() const { return data_; }

 private:
  const size_t bytes_;
  void* data_;
};

struct DeviceRange {
  DeviceRange(const void* p, size_t bytes, MemoryKind kind);

  const uintptr_t begin, end;
  const MemoryKind kind;
  const uintptr_t first_granule;  // address

  Granule& GranuleOf(uintptr_t address) {
    return static_cast<Granule*>(granules.data())[(address - first_granule) / 16];
  }
  void MarkWritten(uintptr_t from, size_t bytes);
  // The first byte of [from, from + bytes) that nobody ever wrote; 0: all are written.
  uintptr_t FirstUnwritten(uintptr_t from, size_t bytes) const;

 private:
  uint8_t* written() const { return static_cast<uint8_t*>(written_bits.data()); }
  LazyZeros granules;
  LazyZeros written_bits;  // one a byte
};

void AddDeviceRange(const void* p, size_t bytes, MemoryKind kind);
void RemoveDeviceRange(const void* p);
// The range that contains the address, or null.
std::shared_ptr<DeviceRange> FindDeviceRange(uintptr_t address);
// The range that ends not far below the address, or null.
std::shared_ptr<DeviceRange> DeviceRangeBelow(uintptr_t address);
// Changes whenever a range goes: who keeps one must look again.
uint64_t DeviceRangesVersion();

}  // namespace lapidary::simt
