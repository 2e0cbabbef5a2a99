#include "kernels/simt/checker/device_ranges.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace lapidary::simt {
namespace {

struct Ranges {
  std::mutex mu;
  std::map<uintptr_t, std::shared_ptr<DeviceRange>> by_begin;
  std::atomic<uint64_t> version{1};
};
Ranges& All() {
  static Ranges* ranges = new Ranges;
  return *ranges;
}

}  // namespace

LazyZeros::LazyZeros(size_t bytes)
    : bytes_(bytes),
      data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
  if (data_ == MAP_FAILED) {
    perror("[simt] shadow memory");
    abort();
  }
}
LazyZeros::~LazyZeros() { munmap(data_, bytes_); }

DeviceRange::DeviceRange(const void* p, size_t bytes, MemoryKind memory)
    : begin(reinterpret_cast<uintptr_t>(p)),
      end(begin + bytes),
      kind(memory),
      first_granule(begin & ~uintptr_t{15}),
      granules((bytes / 16 + 2) * sizeof(Granule)),
      written_bits(bytes / 8 + 2) {}

void DeviceRange::MarkWritten(uintptr_t from, size_t bytes) {
  uint8_t* bits = written();
  size_t i = from - begin;
  const size_t last = std::min(i + bytes, end - begin);
  for (; i < last && i % 8 != 0; ++i) bits[i / 8] |= static_cast<uint8_t>(1u << i % 8);
  if (last >= i + 8) {
    memset(bits + i / 8, 0xff, (last - i) / 8);
    i += (last - i) / 8 * 8;
  }
  for (; i < last; ++i) bits[i / 8] |= static_cast<uint8_t>(1u << i % 8);
}

uintptr_t DeviceRange::FirstUnwritten(uintptr_t from, size_t bytes) const {
  if (kind != MemoryKind::kDevice) return 0;
  const uint8_t* bits = written();
  const size_t first = from - begin;
  for (size_t i = first; i < first + bytes;) {
    if (i % 8 == 0 && i + 8 <= first + bytes && bits[i / 8] == 0xff) {
      i += 8;
    } else if (bits[i / 8] >> i % 8 & 1) {
      ++i;
    } else {
      return begin + i;
    }
  }
  return 0;
}

void AddDeviceRange(const void* p, size_t bytes, MemoryKind kind) {
  std::lock_guard lock(All().mu);
  All().by_begin[reinterpret_cast<uintptr_t>(p)] = std::make_shared<DeviceRange>(p, bytes, kind);
}

void RemoveDeviceRange(const void* p) {
  std::lock_guard lock(All().mu);
  All().by_begin.erase(reinterpret_cast<uintptr_t>(p));
  ++All().version;
}

std::shared_ptr<DeviceRange> FindDeviceRange(uintptr_t address) {
  std::lock_guard lock(All().mu);
  auto it = All().by_begin.upper_bound(address);
  if (it == All().by_begin.begin()) return nullptr;
  --it;
  return address < it->second->end ? it->second : nullptr;
}

std::shared_ptr<DeviceRange> DeviceRangeBelow(uintptr_t address) {
  std::lock_guard lock(All().mu);
  auto it = All().by_begin.upper_bound(address);
  if (it == All().by_begin.begin()) return nullptr;
  --it;
  return address - it->second->end < 4096 ? it->second : nullptr;
}

uint64_t DeviceRangesVersion() { return All().version.load(std::memory_order_acquire); }

}  // namespace lapidary::simt
