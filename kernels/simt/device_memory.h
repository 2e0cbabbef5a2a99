// Loads and stores as single requests, and fences. Part of device.h.
#pragma once
#include <atomic>
#include <cstdint>

#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/thread.h"

namespace lapidary::simt {

[[noreturn]] void StopMisaligned(const void* p, size_t bytes, Site site);
[[noreturn]] void StopOutside(size_t offset, size_t bytes, Site site);  // of shared memory

// Counts a request, and looks at what can be looked at cheaply.
LAPIDARY_SIMT_INTERNAL inline void NoteAccess(const void* p, size_t bytes, Access kind, Site site) {
  Block& block = *current_thread->block;
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (address % bytes != 0) StopMisaligned(p, bytes, site);
  const size_t offset = address - reinterpret_cast<uintptr_t>(block.shared);
  if (offset < kArenaBytes) {
    if (offset + bytes > block.shared_used) {
      StopOutside(offset, bytes, site);
    }
  } else if (kind == Access::kRead) {
    block.bytes_read += static_cast<int64_t>(bytes);
  } else {
    block.bytes_written += static_cast<int64_t>(bytes);
  }
#ifdef LAPIDARY_SIMT_CHECKED
  if (monitor) monitor->OnAccess(p, bytes, kind, site, nullptr);
#endif
}

template <class V>
LAPIDARY_SIMT_INTERNAL inline void LoadRequest(V* to, const void* p, Site site) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "1, 2, 4, 8 or 16 bytes");
  NoteAccess(p, sizeof(V), Access::kRead, site);
  memcpy(to, p, sizeof(V));
}
template <class V>
LAPIDARY_SIMT_INTERNAL inline void StoreRequest(void* p, const V& v, Site site) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "1, 2, 4, 8 or 16 bytes");
  NoteAccess(p, sizeof(V), Access::kWrite, site);
  *static_cast<V*>(p) = v;
}

}  // namespace lapidary::simt

// Cache hints change nothing here.
#define LAPIDARY_SIMT_LOAD(name)                                                               \
  template <class T>                                                                           \
  LAPIDARY_SIMT_INLINED T name(const T* p,                                                     \
                               ::lapidary::simt::Site site = ::lapidary::simt::Site::Here()) { \
    T v;                                                                                       \
    ::lapidary::simt::LoadRequest(&v, p, site);                                                \
    return v;                                                                                  \
  }
LAPIDARY_SIMT_LOAD(__ldg)
LAPIDARY_SIMT_LOAD(__ldca)
LAPIDARY_SIMT_LOAD(__ldcg)
LAPIDARY_SIMT_LOAD(__ldcs)
LAPIDARY_SIMT_LOAD(__ldcv)
LAPIDARY_SIMT_LOAD(__ldlu)
#undef LAPIDARY_SIMT_LOAD
#define LAPIDARY_SIMT_STORE(name)                                                \
  template <class T>                                                             \
  LAPIDARY_SIMT_INTERNAL inline void name(                                       \
      T* p, T v, ::lapidary::simt::Site site = ::lapidary::simt::Site::Here()) { \
    ::lapidary::simt::StoreRequest<T>(p, v, site);                               \
  }
LAPIDARY_SIMT_STORE(__stcg)
LAPIDARY_SIMT_STORE(__stcs)
LAPIDARY_SIMT_STORE(__stwb)
LAPIDARY_SIMT_STORE(__stwt)
#undef LAPIDARY_SIMT_STORE

// One OS thread runs a block; other threads (another device, the host) may look on.
LAPIDARY_SIMT_INTERNAL inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (::lapidary::simt::monitor) ::lapidary::simt::monitor->OnThreadFence();
}
LAPIDARY_SIMT_INTERNAL inline void __threadfence_block() { __threadfence(); }
LAPIDARY_SIMT_INTERNAL inline void __threadfence_system() { __threadfence(); }
