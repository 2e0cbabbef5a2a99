// What lies in cuBLASLt's opaque structures, in the stand-in's own way.
#pragma once
#include <cublasLt.h>

#include <cstdint>

namespace lapidary::standin {

struct LtLayout {
  int32_t type = 0;
  int32_t order = CUBLASLT_ORDER_COL;
  uint64_t rows = 0, columns = 0;
  int64_t ld = 0;
  int32_t batch = 1;
  int64_t batch_stride = 0;  // elements
};
static_assert(sizeof(LtLayout) <= sizeof(cublasLtMatrixLayoutOpaque_t));

struct LtDesc {
  int32_t compute = 0, scale_type = 0, pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N, transpose_c = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  int32_t bias_type = -1;
  int32_t scale_mode_a = 0, scale_mode_b = 0, scale_mode_c = 0, scale_mode_d = 0;
  int32_t processors = 0;
  int8_t fast_accumulation = 0;
  const void* bias = nullptr;
  const void *scale_a = nullptr, *scale_b = nullptr, *scale_c = nullptr, *scale_d = nullptr;
  const void* largest_d = nullptr;
};
static_assert(sizeof(LtDesc) <= sizeof(cublasLtMatmulDescOpaque_t));

struct LtPreference {
  uint64_t workspace_bytes = 0;
  uint32_t alignment_a = 256, alignment_b = 256, alignment_c = 256, alignment_d = 256;
  uint32_t search_mode = 0, reduction_mask = ~0u;
  float most_waves = 0;
  uint64_t implementations = ~uint64_t{0};
};
static_assert(sizeof(LtPreference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));

// Chosen for one kind of problem; needs what it was promised.
struct LtAlgorithm {
  uint64_t magic = 0;
  uint64_t workspace_bytes = 0;
  uint32_t alignment_a = 1, alignment_b = 1, alignment_c = 1, alignment_d = 1;  // of pointers
  int32_t type_a = 0, type_b = 0, type_c = 0, type_d = 0;
  int32_t transpose_a = 0, transpose_b = 0;
};
static_assert(sizeof(LtAlgorithm) <= sizeof(cublasLtMatmulAlgo_t));
inline constexpr uint64_t kLtMagic = 0x6c61706964617279u;

template <class T>
T& As(void* opaque) {
  return *static_cast<T*>(opaque);
}
template <class T>
const T& As(const void* opaque) {
  return *static_cast<const T*>(opaque);
}

}  // namespace lapidary::standin
