// What -fsanitize=thread makes of a kernel's plain accesses: calls of these. No libtsan is linked.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/simt/monitor.h"
#include "kernels/simt/thread.h"

namespace {

using lapidary::simt::Access;

void Note(const void* p, size_t bytes, Access kind, const void* pc) {
  if (lapidary::simt::current_thread) lapidary::simt::NotePlainAccess(p, bytes, kind, pc);
}

}  // namespace

#define LAPIDARY_PC __builtin_return_address(0)

extern "C" {

#define LAPIDARY_ACCESS(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { Note(p, bytes, Access::kRead, LAPIDARY_PC); }             \
  void __tsan_write##bytes(void* p) { Note(p, bytes, Access::kWrite, LAPIDARY_PC); }           \
  void __tsan_unaligned_read##bytes(void* p) { Note(p, bytes, Access::kRead, LAPIDARY_PC); }   \
  void __tsan_unaligned_write##bytes(void* p) { Note(p, bytes, Access::kWrite, LAPIDARY_PC); } \
  void __tsan_read_write##bytes(void* p) {                                                     \
    Note(p, bytes, Access::kRead, LAPIDARY_PC);                                                \
    Note(p, bytes, Access::kWrite, LAPIDARY_PC);                                               \
  }                                                                                            \
  void __tsan_unaligned_read_write##bytes(void* p) {                                           \
    Note(p, bytes, Access::kRead, LAPIDARY_PC);                                                \
    Note(p, bytes, Access::kWrite, LAPIDARY_PC);                                               \
  }                                                                                            \
  void __tsan_volatile_read##bytes(void* p) {                                                  \
    Note(p, bytes, Access::kVolatileRead, LAPIDARY_PC);                                        \
  }                                                                                            \
  void __tsan_volatile_write##bytes(void* p) { Note(p, bytes, Access::kAtomic, LAPIDARY_PC); }
LAPIDARY_ACCESS(1)
LAPIDARY_ACCESS(2)
LAPIDARY_ACCESS(4)
LAPIDARY_ACCESS(8)
LAPIDARY_ACCESS(16)

void __tsan_read_range(void* p, size_t n) { Note(p, n, Access::kRead, LAPIDARY_PC); }
void __tsan_write_range(void* p, size_t n) { Note(p, n, Access::kWrite, LAPIDARY_PC); }
void* __tsan_memset(void* p, int value, size_t n) {
  Note(p, n, Access::kWrite, LAPIDARY_PC);
  return memset(p, value, n);
}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  Note(from, n, Access::kRead, LAPIDARY_PC);
  Note(to, n, Access::kWrite, LAPIDARY_PC);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  Note(from, n, Access::kRead, LAPIDARY_PC);
  Note(to, n, Access::kWrite, LAPIDARY_PC);
  return memmove(to, from, n);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

// Host code in device sources (guards of static variables, reference counts).
#define LAPIDARY_ATOMIC(bits, T)                                                                 \
  T __tsan_atomic##bits##_load(const T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_exchange(T* p, T v, int) {                                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                          \
  }                                                                                              \
  T __tsan_atomic##bits##_fetch_add(T* p, T v, int) {                                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                           \
  }                                                                                              \
  T __tsan_atomic##bits##_fetch_sub(T* p, T v, int) {                                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                           \
  }                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* e, T v, int, int) {                 \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
  }                                                                                              \
  T __tsan_atomic##bits##_compare_exchange_val(T* p, T e, T v, int, int) {                       \
    __atomic_compare_exchange_n(p, &e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
    return e;                                                                                    \
  }                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_weak(T* p, T* e, T v, int, int) {                   \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
  }
LAPIDARY_ATOMIC(8, uint8_t)
LAPIDARY_ATOMIC(16, uint16_t)
LAPIDARY_ATOMIC(32, uint32_t)
LAPIDARY_ATOMIC(64, uint64_t)

}  // extern "C"
