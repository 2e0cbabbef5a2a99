#include "tests/support/cuda/cudart_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/simt/fault.h"
#include "kernels/simt/monitor.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/cudart_protection.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define LAPIDARY_POISON(p, n) __asan_poison_memory_region(p, n)
#define LAPIDARY_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define LAPIDARY_POISON(p, n) (void)(p), (void)(n)
#define LAPIDARY_UNPOISON(p, n) (void)(p), (void)(n)
#endif

namespace lapidary::standin {
namespace {

using simt::monitor;

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
// Addresses of a device: never used twice. For those of all, ThreadSanitizer leaves 1.5 TiB.
constexpr size_t kArenaBytes = size_t{1} << 36;
constexpr int kMostDevices = 16;

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

struct Arena {
  std::atomic<unsigned char*> base = nullptr;  // IsDeviceAddress reads it without the mutex
  size_t top = 0;
  size_t used = 0;  // bytes, whole pages
};
struct Memory {
  std::mutex mu;
  Arena arenas[kMostDevices];
  std::map<uintptr_t, Allocation> allocations;  // by begin
};
Memory& All() {
  static Memory* memory = new Memory;
  return *memory;
}

uintptr_t Address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
unsigned char* PageOf(const void* p) {
  return reinterpret_cast<unsigned char*>(Address(p) / kPage * kPage);
}
// The pages of a device allocation: it ends at (almost) the last one's end.
size_t PageBytes(const Allocation& a) {
  return RoundUp(a.begin + a.bytes, kPage) - a.begin / kPage * kPage;
}

const Allocation* Find(const Memory& memory, uintptr_t address) {
  auto it = memory.allocations.upper_bound(address);
  if (it == memory.allocations.begin()) return nullptr;
  --it;
  const Allocation& a = it->second;
  return address < a.begin + a.bytes ? &a : nullptr;
}

void ReleasePages(Memory& memory, const Allocation& a) {
  unsigned char* pages = PageOf(reinterpret_cast<void*>(a.begin));
  const size_t bytes = PageBytes(a);
  if (monitor) monitor->OnFree(reinterpret_cast<void*>(a.begin));
  UnprotectPages(pages, bytes);
  // A fresh mapping: no memory, no key, no access.
  if (mmap(pages, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
           0) == MAP_FAILED) {
    std::perror("releasing device memory");
    std::abort();
  }
  LAPIDARY_POISON(pages, bytes);
  if (a.file >= 0) close(a.file);
  if (!a.imported) memory.arenas[a.device].used -= bytes;
}

// Addresses for so many bytes of pages, and a guard page behind them. Null: none are left.
unsigned char* TakeAddresses(Arena& arena, size_t page_bytes) {
  if (!arena.base) {
    void* base =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    arena.base = static_cast<unsigned char*>(base);
    simt::DescribeFaultsWith(&DescribeAddress);
    simt::CatchFaults();
  }
  if (arena.top + page_bytes + kPage > kArenaBytes) return nullptr;
  unsigned char* pages = arena.base + arena.top;
  arena.top += page_bytes + kPage;
  return pages;
}

// Notes device memory down. What of its pages is not its own may not be touched.
void Offer(Memory& memory, unsigned char* pages, size_t page_bytes, const Allocation& a,
           simt::MemoryKind kind) {
  auto* const begin = reinterpret_cast<unsigned char*>(a.begin);
  LAPIDARY_UNPOISON(pages, page_bytes);
  LAPIDARY_POISON(pages, static_cast<size_t>(begin - pages));
  LAPIDARY_POISON(begin + a.bytes, static_cast<size_t>(pages + page_bytes - (begin + a.bytes)));
  memory.allocations[a.begin] = a;
  if (monitor) monitor->OnAllocate(begin, a.bytes, kind);
  ProtectPages(pages, page_bytes);
}

}  // namespace

cudaError_t AllocateDevice(int device, size_t bytes, void** p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  Arena& arena = memory.arenas[device];
  const size_t page_bytes = RoundUp(bytes, kPage);
  if (page_bytes < bytes || arena.used + page_bytes > GetConfig().memory_bytes) {
    return cudaErrorMemoryAllocation;
  }
  unsigned char* pages = TakeAddresses(arena, page_bytes);
  if (!pages || mprotect(pages, page_bytes, PROT_READ | PROT_WRITE) != 0) {
    return cudaErrorMemoryAllocation;
  }
  arena.used += page_bytes;
  LAPIDARY_UNPOISON(pages, page_bytes);
  memset(pages, 0xff, page_bytes);  // NaN in every float format
  // At the end of its pages, so that going beyond meets the guard page.
  unsigned char* begin = pages + page_bytes - RoundUp(bytes, kAlignment);
  Offer(memory, pages, page_bytes, {.begin = Address(begin), .bytes = bytes, .device = device},
        simt::MemoryKind::kDevice);
  *p = begin;
  return cudaSuccess;
}

cudaError_t FreeDevice(void* p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const auto it = memory.allocations.find(Address(p));
  if (it == memory.allocations.end() || it->second.pinned || it->second.imported) {
    return cudaErrorInvalidValue;
  }
  ReleasePages(memory, it->second);
  memory.allocations.erase(it);
  return cudaSuccess;
}

void ResetDeviceMemory(int device) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  for (auto it = memory.allocations.begin(); it != memory.allocations.end();) {
    if (!it->second.pinned && it->second.device == device) {
      ReleasePages(memory, it->second);
      it = memory.allocations.erase(it);
    } else {
      ++it;
    }
  }
}

cudaError_t AllocatePinned(size_t bytes, unsigned flags, void** p) {
  const size_t page_bytes = RoundUp(bytes, kPage);
  void* pages =
      mmap(nullptr, page_bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return cudaErrorMemoryAllocation;
  memset(pages, 0xff, page_bytes);
  mprotect(static_cast<unsigned char*>(pages) + page_bytes, kPage, PROT_NONE);
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  memory.allocations[Address(pages)] = {
      .begin = Address(pages), .bytes = bytes, .pinned = true, .owned = true, .flags = flags};
  if (monitor) {
    monitor->OnAllocate(
        pages, bytes,
        flags & cudaHostAllocPortable ? simt::MemoryKind::kShared : simt::MemoryKind::kMappedHost);
  }
  *p = pages;
  return cudaSuccess;
}

cudaError_t FreePinned(void* p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const auto it = memory.allocations.find(Address(p));
  if (it == memory.allocations.end() || !it->second.owned) return cudaErrorInvalidValue;
  if (monitor) monitor->OnFree(p);
  munmap(p, RoundUp(it->second.bytes, kPage) + kPage);
  memory.allocations.erase(it);
  return cudaSuccess;
}

cudaError_t RegisterHost(void* p, size_t bytes, unsigned flags) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  if (Find(memory, Address(p)) || Find(memory, Address(p) + bytes - 1)) {
    return cudaErrorHostMemoryAlreadyRegistered;
  }
  memory.allocations[Address(p)] = {
      .begin = Address(p), .bytes = bytes, .pinned = true, .flags = flags};
  if (monitor) monitor->OnAllocate(p, bytes, simt::MemoryKind::kMappedHost);
  return cudaSuccess;
}

cudaError_t UnregisterHost(void* p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const auto it = memory.allocations.find(Address(p));
  if (it == memory.allocations.end() || !it->second.pinned || it->second.owned) {
    return cudaErrorHostMemoryNotRegistered;
  }
  if (monitor) monitor->OnFree(p);
  memory.allocations.erase(it);
  return cudaSuccess;
}

cudaError_t ShareDevice(void* p, SharedMemory* shared) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const auto it = memory.allocations.find(Address(p));
  if (it == memory.allocations.end() || it->second.pinned || it->second.imported) {
    return cudaErrorInvalidValue;
  }
  Allocation& a = it->second;
  unsigned char* pages = PageOf(p);
  const size_t page_bytes = PageBytes(a), offset = Address(p) - Address(pages);
  if (a.file < 0) {
    // The same bytes at the same place, from now on in a file.
    DeviceAccess access;
    *static_cast<volatile unsigned char*>(p);  // which the kernel's own access would not open
    const int file = memfd_create("lapidary_device_memory", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(page_bytes)) != 0 ||
        pwrite(file, p, a.bytes, static_cast<off_t>(offset)) != static_cast<ssize_t>(a.bytes) ||
        mmap(pages, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
            MAP_FAILED) {
      if (file >= 0) close(file);
      return cudaErrorMemoryAllocation;
    }
    ProtectPages(pages, page_bytes);
    a.file = file;
    if (monitor) {
      monitor->OnFree(p);
      monitor->OnAllocate(p, a.bytes, simt::MemoryKind::kShared);
    }
  }
  *shared = {.file = a.file, .offset = offset, .bytes = a.bytes};
  return cudaSuccess;
}

cudaError_t MapShared(int device, const SharedMemory& shared, void** p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const size_t page_bytes = RoundUp(shared.offset + shared.bytes, kPage);
  unsigned char* pages = TakeAddresses(memory.arenas[device], page_bytes);
  if (!pages || mmap(pages, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, shared.file,
                     0) == MAP_FAILED) {
    return cudaErrorMapBufferObjectFailed;
  }
  unsigned char* begin = pages + shared.offset;
  Offer(memory, pages, page_bytes,
        {.begin = Address(begin), .bytes = shared.bytes, .device = device, .imported = true},
        simt::MemoryKind::kShared);
  *p = begin;
  return cudaSuccess;
}

cudaError_t UnmapShared(void* p) {
  Memory& memory = All();
  std::lock_guard lock(memory.mu);
  const auto it = memory.allocations.find(Address(p));
  if (it == memory.allocations.end() || !it->second.imported) return cudaErrorInvalidValue;
  ReleasePages(memory, it->second);
  memory.allocations.erase(it);
  return cudaSuccess;
}

size_t DeviceBytesUsed(int device) {
  std::lock_guard lock(All().mu);
  return All().arenas[device].used;
}

bool FindAllocation(const void* p, Allocation* found) {
  std::lock_guard lock(All().mu);
  const Allocation* a = Find(All(), Address(p));
  if (a) *found = *a;
  return a != nullptr;
}

bool IsDeviceAddress(const void* p) {
  for (const Arena& arena : All().arenas) {
    const unsigned char* base = arena.base;
    if (base && p >= base && p < base + kArenaBytes) return true;
  }
  return false;
}

void DescribeAddress(const void* p, char* text, size_t size) {
  text[0] = 0;
  if (!IsDeviceAddress(p)) return;
  // Called from a signal handler: without the lock, a moment that is lost anyway.
  auto it = All().allocations.upper_bound(Address(p));
  if (it == All().allocations.begin()) {
    snprintf(text, size, " (device memory that is freed or was never allocated)");
    return;
  }
  const Allocation& a = std::prev(it)->second;
  const size_t offset = Address(p) - a.begin;
  if (offset < a.bytes) {
    snprintf(text, size, " (byte %zu of device memory of %zu bytes)", offset, a.bytes);
  } else if (offset < a.bytes + 2 * kPage) {
    snprintf(text, size, " (%zu bytes behind device memory of %zu bytes)", offset - a.bytes,
             a.bytes);
  } else {
    snprintf(text, size, " (device memory that is freed or was never allocated)");
  }
}

}  // namespace lapidary::standin
