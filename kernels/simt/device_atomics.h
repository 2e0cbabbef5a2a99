// Atomic functions. Part of device.h.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/simt/device_memory.h"
#include "kernels/simt/spin.h"

namespace lapidary::simt {

template <class T, class... Allowed>
inline constexpr bool kOneOf = (std::is_same_v<T, Allowed> || ...);

// CUDA's own types: int64_t is `long` and has no atomics there either.
template <class T>
inline constexpr bool kAtomicInteger = kOneOf<T, int, unsigned, long long, unsigned long long>;

// *p = f(*p); the old value.
template <class T, class F>
LAPIDARY_SIMT_INTERNAL inline T Update(T* p, F f, Site site) {
  NoteAccess(p, sizeof(T), Access::kAtomic, site);
  T old, changed;
  __atomic_load(p, &old, __ATOMIC_SEQ_CST);
  do {
    changed = f(old);
  } while (
      !__atomic_compare_exchange(p, &old, &changed, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  NoteSpin();
  return old;
}

}  // namespace lapidary::simt

#define LAPIDARY_SIMT_ATOMIC_SUFFIXES(define) define() define(_block) define(_system)

#define LAPIDARY_SIMT_SITE ::lapidary::simt::Site site = ::lapidary::simt::Site::Here()
// A function of one operand; `v` is the operand, `old` what is there.
#define LAPIDARY_SIMT_ATOMIC(name, allowed, result)                                           \
  template <class T>                                                                          \
  LAPIDARY_SIMT_INTERNAL inline T name(T* p, std::type_identity_t<T> v, LAPIDARY_SIMT_SITE) { \
    static_assert(allowed, "CUDA has no such " #name);                                        \
    return ::lapidary::simt::Update(                                                          \
        p, [v]([[maybe_unused]] T old) -> T { return result; }, site);                        \
  }

#define LAPIDARY_SIMT_DEFINE(suffix)                                                               \
  LAPIDARY_SIMT_ATOMIC(atomicAdd##suffix,                                                          \
                       (::lapidary::simt::kOneOf<T, int, unsigned, unsigned long long, float,      \
                                                 double, __nv_bfloat16, __half>),                  \
                       old + v)                                                                    \
  LAPIDARY_SIMT_ATOMIC(atomicSub##suffix, (::lapidary::simt::kOneOf<T, int, unsigned>), old - v)   \
  LAPIDARY_SIMT_ATOMIC(atomicExch##suffix,                                                         \
                       (::lapidary::simt::kOneOf<T, int, unsigned, unsigned long long, float>), v) \
  LAPIDARY_SIMT_ATOMIC(atomicMin##suffix, ::lapidary::simt::kAtomicInteger<T>, v < old ? v : old)  \
  LAPIDARY_SIMT_ATOMIC(atomicMax##suffix, ::lapidary::simt::kAtomicInteger<T>, v > old ? v : old)  \
  LAPIDARY_SIMT_ATOMIC(atomicInc##suffix, (::lapidary::simt::kOneOf<T, unsigned>),                 \
                       old >= v ? 0u : old + 1)                                                    \
  LAPIDARY_SIMT_ATOMIC(atomicDec##suffix, (::lapidary::simt::kOneOf<T, unsigned>),                 \
                       old == 0 || old > v ? v : old - 1)                                          \
  LAPIDARY_SIMT_ATOMIC(atomicAnd##suffix, ::lapidary::simt::kAtomicInteger<T>, old& v)             \
  LAPIDARY_SIMT_ATOMIC(atomicOr##suffix, ::lapidary::simt::kAtomicInteger<T>, old | v)             \
  LAPIDARY_SIMT_ATOMIC(atomicXor##suffix, ::lapidary::simt::kAtomicInteger<T>, old ^ v)            \
  template <class T>                                                                               \
  LAPIDARY_SIMT_INTERNAL inline T atomicCAS##suffix(                                               \
      T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v, LAPIDARY_SIMT_SITE) {      \
    static_assert(::lapidary::simt::kOneOf<T, int, unsigned, unsigned long long, unsigned short>,  \
                  "CUDA has no such atomicCAS");                                                   \
    return ::lapidary::simt::Update(                                                               \
        p, [compare, v](T old) -> T { return old == compare ? v : old; }, site);                   \
  }
LAPIDARY_SIMT_ATOMIC_SUFFIXES(LAPIDARY_SIMT_DEFINE)
#undef LAPIDARY_SIMT_DEFINE
#undef LAPIDARY_SIMT_ATOMIC
#undef LAPIDARY_SIMT_ATOMIC_SUFFIXES
#undef LAPIDARY_SIMT_SITE
