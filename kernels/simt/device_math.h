// Arithmetic, bit and conversion functions of CUDA C++ that a host compiler lacks. Part of
// device.h.
//
// Approximate functions are the host's exact ones: a GPU differs in the last bits.
#pragma once
#include <time.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/simt/site.h"
#include "kernels/simt/spin.h"

namespace lapidary::simt {

template <class To, class From>
inline To BitCast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

// CUDA's conversions saturate and take NaN to 0.
template <class To, class From>
inline To Saturate(From rounded) {
  if (std::isnan(rounded)) return 0;
  constexpr To kLeast = std::numeric_limits<To>::min(), kMost = std::numeric_limits<To>::max();
  if (rounded <= static_cast<From>(kLeast)) return kLeast;
  if (rounded >= static_cast<From>(kMost)) return kMost;
  return static_cast<To>(rounded);
}

}  // namespace lapidary::simt

// -- Bits.

inline unsigned __float_as_uint(float v) { return lapidary::simt::BitCast<unsigned>(v); }
inline int __float_as_int(float v) { return lapidary::simt::BitCast<int>(v); }
inline float __uint_as_float(unsigned v) { return lapidary::simt::BitCast<float>(v); }
inline float __int_as_float(int v) { return lapidary::simt::BitCast<float>(v); }
inline long long __double_as_longlong(double v) { return lapidary::simt::BitCast<long long>(v); }
inline double __longlong_as_double(long long v) { return lapidary::simt::BitCast<double>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) {
  return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64;
}
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned long long __brevll(unsigned long long v) {
  unsigned long long r = 0;
  for (int i = 0; i < 64; ++i) r |= (v >> i & 1) << (63 - i);
  return r;
}
inline unsigned __brev(unsigned v) { return static_cast<unsigned>(__brevll(v) >> 32); }
// Byte i of the result is byte (selector >> 4 i) & 7 of x, y. PTX's prmt spreads a byte's sign
// where bit 3 is set; this function ignores that bit.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = uint64_t{y} << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned byte = selector >> 4 * i & 7;
    r |= (static_cast<unsigned>(both >> 8 * byte) & 0xff) << 8 * i;
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

// -- Integers.

inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
__extension__ typedef __int128 LapidarySimtInt128;
__extension__ typedef unsigned __int128 LapidarySimtUint128;
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>(static_cast<LapidarySimtInt128>(a) * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<LapidarySimtUint128>(a) * b >> 64);
}
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  }
  return c;
}

// min and max are CUDA's overloads: mixed signs go to unsigned.
#define LAPIDARY_SIMT_MINMAX(T, A, B)                                                     \
  inline T min(A a, B b) {                                                                \
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
  }                                                                                       \
  inline T max(A a, B b) {                                                                \
    return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
  }
LAPIDARY_SIMT_MINMAX(int, int, int)
LAPIDARY_SIMT_MINMAX(unsigned, unsigned, unsigned)
LAPIDARY_SIMT_MINMAX(unsigned, int, unsigned)
LAPIDARY_SIMT_MINMAX(unsigned, unsigned, int)
LAPIDARY_SIMT_MINMAX(long, long, long)
LAPIDARY_SIMT_MINMAX(unsigned long, unsigned long, unsigned long)
LAPIDARY_SIMT_MINMAX(unsigned long, long, unsigned long)
LAPIDARY_SIMT_MINMAX(unsigned long, unsigned long, long)
LAPIDARY_SIMT_MINMAX(long long, long long, long long)
LAPIDARY_SIMT_MINMAX(unsigned long long, unsigned long long, unsigned long long)
LAPIDARY_SIMT_MINMAX(unsigned long long, long long, unsigned long long)
LAPIDARY_SIMT_MINMAX(unsigned long long, unsigned long long, long long)
#undef LAPIDARY_SIMT_MINMAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// -- Floats: one rounding each, never contracted with a neighbour.

inline float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
inline float __fsub_rn(float a, float b) {
  volatile float r = a - b;
  return r;
}
inline float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(double{a})); }
inline double __dadd_rn(double a, double b) {
  volatile double r = a + b;
  return r;
}
inline double __dsub_rn(double a, double b) {
  volatile double r = a - b;
  return r;
}
inline double __dmul_rn(double a, double b) {
  volatile double r = a * b;
  return r;
}
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f; }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float normcdff(float v) { return 0.5f * erfcf(-v * 0.70710678118654752f); }

// glibc keeps these names for itself, so they cannot be functions.
#define __expf(v) expf(v)
#define __exp10f(v) exp10f(v)
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __log10f(v) log10f(v)
#define __powf(a, b) powf(a, b)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __tanf(v) tanf(v)
#define __tanhf(v) tanhf(v)
#define __sincosf(v, s, c) sincosf(v, s, c)

// -- Conversions. rn nearest even, rz to zero, ru up, rd down.

#define LAPIDARY_SIMT_TO_INTEGER(name, To, From)                                          \
  inline To name##_rn(From v) { return lapidary::simt::Saturate<To>(std::nearbyint(v)); } \
  inline To name##_rz(From v) { return lapidary::simt::Saturate<To>(std::trunc(v)); }     \
  inline To name##_ru(From v) { return lapidary::simt::Saturate<To>(std::ceil(v)); }      \
  inline To name##_rd(From v) { return lapidary::simt::Saturate<To>(std::floor(v)); }
LAPIDARY_SIMT_TO_INTEGER(__float2int, int, float)
LAPIDARY_SIMT_TO_INTEGER(__float2uint, unsigned, float)
LAPIDARY_SIMT_TO_INTEGER(__float2ll, long long, float)
LAPIDARY_SIMT_TO_INTEGER(__float2ull, unsigned long long, float)
LAPIDARY_SIMT_TO_INTEGER(__double2int, int, double)
LAPIDARY_SIMT_TO_INTEGER(__double2uint, unsigned, double)
LAPIDARY_SIMT_TO_INTEGER(__double2ll, long long, double)
LAPIDARY_SIMT_TO_INTEGER(__double2ull, unsigned long long, double)
#undef LAPIDARY_SIMT_TO_INTEGER
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) { return static_cast<float>(v); }
inline float __ull2float_rn(unsigned long long v) { return static_cast<float>(v); }
inline double __int2double_rn(int v) { return v; }
inline double __ll2double_rn(long long v) { return static_cast<double>(v); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }

// -- Time and traps.

inline void __nanosleep(unsigned) { lapidary::simt::SpinOnce(); }
inline long long clock64() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}
inline void __trap(::lapidary::simt::Site site = lapidary::simt::Site::Here()) {
  lapidary::simt::StopBlock(site);
}
