#include "tests/support/cuda/nccl_reduce.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

namespace lapidary::standin {
namespace {

template <class T>
T Combine(T a, T b, ncclRedOp_t op) {
  switch (op) {
    case ncclProd:
      return static_cast<T>(a * b);
    case ncclMax:
      return a < b ? b : a;
    case ncclMin:
      return b < a ? b : a;
    default:
      return static_cast<T>(a + b);
  }
}

// The small floats compute in float and round.
template <class T>
struct Wide {
  using Type = T;
  static T Round(T v) { return v; }
};
template <>
struct Wide<__nv_bfloat16> {
  using Type = float;
  static __nv_bfloat16 Round(float v) { return __float2bfloat16_rn(v); }
};
template <>
struct Wide<__half> {
  using Type = float;
  static __half Round(float v) { return __float2half_rn(v); }
};

template <class T>
void Reduce(ncclRedOp_t op, void* to, const void* from, size_t count) {
  using W = typename Wide<T>::Type;
  T* a = static_cast<T*>(to);
  const T* b = static_cast<const T*>(from);
  for (size_t i = 0; i < count; ++i) {
    a[i] = Wide<T>::Round(Combine<W>(static_cast<W>(a[i]), static_cast<W>(b[i]), op));
  }
}

template <class T>
void Divide(void* values, size_t count, int by) {
  using W = typename Wide<T>::Type;
  T* v = static_cast<T*>(values);
  for (size_t i = 0; i < count; ++i) {
    v[i] = Wide<T>::Round(static_cast<W>(static_cast<W>(v[i]) / static_cast<W>(by)));
  }
}

// Calls f with a null pointer of the element type; false: no such type.
template <class F>
bool WithType(ncclDataType_t type, F f) {
  switch (type) {
    case ncclInt8:
      f(static_cast<int8_t*>(nullptr));
      return true;
    case ncclUint8:
      f(static_cast<uint8_t*>(nullptr));
      return true;
    case ncclInt32:
      f(static_cast<int32_t*>(nullptr));
      return true;
    case ncclUint32:
      f(static_cast<uint32_t*>(nullptr));
      return true;
    case ncclInt64:
      f(static_cast<int64_t*>(nullptr));
      return true;
    case ncclUint64:
      f(static_cast<uint64_t*>(nullptr));
      return true;
    case ncclFloat16:
      f(static_cast<__half*>(nullptr));
      return true;
    case ncclFloat32:
      f(static_cast<float*>(nullptr));
      return true;
    case ncclFloat64:
      f(static_cast<double*>(nullptr));
      return true;
    case ncclBfloat16:
      f(static_cast<__nv_bfloat16*>(nullptr));
      return true;
    default:
      return false;
  }
}

}  // namespace

size_t NcclTypeBytes(ncclDataType_t type) {
  if (type == ncclFloat8e4m3 || type == ncclFloat8e5m2) return 1;  // moved, not reduced
  size_t bytes = 0;
  WithType(type, [&](auto* p) { bytes = sizeof *p; });
  return bytes;
}

bool NcclReduces(ncclDataType_t type, ncclRedOp_t op) {
  const bool known =
      op == ncclSum || op == ncclProd || op == ncclMax || op == ncclMin || op == ncclAvg;
  return known && WithType(type, [](auto*) {});
}

void NcclReduceInto(ncclDataType_t type, ncclRedOp_t op, void* to, const void* from, size_t count) {
  WithType(type, [&](auto* p) { Reduce<std::remove_pointer_t<decltype(p)>>(op, to, from, count); });
}

void NcclDivide(ncclDataType_t type, void* values, size_t count, int by) {
  WithType(type, [&](auto* p) { Divide<std::remove_pointer_t<decltype(p)>>(values, count, by); });
}

}  // namespace lapidary::standin
