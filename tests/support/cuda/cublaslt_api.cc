// The functions of cublasLt.h that a worker uses for dense products.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "tests/support/cuda/cublaslt_multiply.h"
#include "tests/support/cuda/cublaslt_rules.h"
#include "tests/support/cuda/cudart_config.h"
#include "tests/support/cuda/runtime.h"

namespace lapidary::standin {
namespace {

// A field of a structure, behind an attribute.
struct Field {
  void* p = nullptr;
  size_t bytes = 0;
};
template <class T>
Field FieldOf(T& v) {
  return {&v, sizeof v};
}

Field LayoutField(LtLayout& l, cublasLtMatrixLayoutAttribute_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return FieldOf(l.type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return FieldOf(l.order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return FieldOf(l.rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return FieldOf(l.columns);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return FieldOf(l.ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return FieldOf(l.batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return FieldOf(l.batch_stride);
    default:
      return {};
  }
}

Field DescField(LtDesc& d, cublasLtMatmulDescAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return FieldOf(d.compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return FieldOf(d.scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return FieldOf(d.pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return FieldOf(d.transpose_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return FieldOf(d.transpose_b);
    case CUBLASLT_MATMUL_DESC_TRANSC:
      return FieldOf(d.transpose_c);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return FieldOf(d.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return FieldOf(d.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return FieldOf(d.bias_type);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return FieldOf(d.scale_a);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return FieldOf(d.scale_b);
    case CUBLASLT_MATMUL_DESC_C_SCALE_POINTER:
      return FieldOf(d.scale_c);
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
      return FieldOf(d.scale_d);
    case CUBLASLT_MATMUL_DESC_AMAX_D_POINTER:
      return FieldOf(d.largest_d);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return FieldOf(d.scale_mode_a);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return FieldOf(d.scale_mode_b);
    case CUBLASLT_MATMUL_DESC_C_SCALE_MODE:
      return FieldOf(d.scale_mode_c);
    case CUBLASLT_MATMUL_DESC_D_SCALE_MODE:
      return FieldOf(d.scale_mode_d);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return FieldOf(d.fast_accumulation);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return FieldOf(d.processors);
    default:
      return {};
  }
}

Field PreferenceField(LtPreference& p, cublasLtMatmulPreferenceAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
      return FieldOf(p.search_mode);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return FieldOf(p.workspace_bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return FieldOf(p.reduction_mask);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return FieldOf(p.alignment_a);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return FieldOf(p.alignment_b);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return FieldOf(p.alignment_c);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return FieldOf(p.alignment_d);
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT:
      return FieldOf(p.most_waves);
    case CUBLASLT_MATMUL_PREF_IMPL_MASK:
      return FieldOf(p.implementations);
    default:
      return {};
  }
}

cublasStatus_t SetField(const Field& field, const void* value, size_t bytes) {
  if (!field.p) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!value || bytes != field.bytes) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(field.p, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t GetField(const Field& field, void* value, size_t bytes, size_t* written) {
  if (!field.p) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (written) *written = field.bytes;
  if (bytes == 0) return CUBLAS_STATUS_SUCCESS;
  if (!value || bytes < field.bytes) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(value, field.p, field.bytes);
  return CUBLAS_STATUS_SUCCESS;
}

template <class T>
cublasStatus_t Place(void* opaque, size_t size, const T& value) {
  if (!opaque || size < sizeof value) return CUBLAS_STATUS_ALLOC_FAILED;
  memset(opaque, 0, size);
  As<T>(opaque) = value;
  return CUBLAS_STATUS_SUCCESS;
}

struct Handle {
  uint64_t magic = kLtMagic;
};
bool IsHandle(cublasLtHandle_t handle) {
  return handle && reinterpret_cast<const Handle*>(handle)->magic == kLtMagic;
}

LtProblem ProblemOf(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  return {&As<LtDesc>(desc), &As<LtLayout>(a), &As<LtLayout>(b), &As<LtLayout>(c),
          &As<LtLayout>(d)};
}

int Capability() { return GetConfig().chip.capability; }

size_t SpanBytes(const LtLayout& l) {
  const uint64_t last = (l.columns - 1) * static_cast<uint64_t>(l.ld) + l.rows;
  return (static_cast<uint64_t>(l.batch - 1) * static_cast<uint64_t>(l.batch_stride) + last) *
         LtTypeBytes(l.type);
}

// What a GPU would fault on.
const char* BadOperand(const LtCall& call) {
  const LtDesc& desc = call.desc;
  if (!IsDeviceUsable(call.a, SpanBytes(call.layout_a))) return "A";
  if (!IsDeviceUsable(call.b, SpanBytes(call.layout_b))) return "B";
  if (!IsDeviceUsable(call.d, SpanBytes(call.layout_d))) return "D";
  const bool reads_c = call.device_beta || call.beta != 0;
  if (reads_c && !IsDeviceUsable(call.c, SpanBytes(call.layout_c))) return "C";
  const bool vectors = desc.scale_mode_a == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  const size_t a_scales = vectors ? call.layout_d.rows : 1;
  const size_t b_scales = vectors ? call.layout_d.columns : 1;
  if (desc.scale_a && !IsDeviceUsable(desc.scale_a, a_scales * 4)) return "the scale of A";
  if (desc.scale_b && !IsDeviceUsable(desc.scale_b, b_scales * 4)) return "the scale of B";
  return nullptr;
}

bool Aligned(const void* p, uint32_t alignment) {
  return reinterpret_cast<uintptr_t>(p) % alignment == 0;
}

void RunMatmul(const LtCall& call, void* workspace, size_t workspace_bytes) {
  if (const char* bad = BadOperand(call)) {
    fprintf(stderr, "[simt] cublasLtMatmul: %s is not (all) device memory\n", bad);
    FailDevice(cudaErrorIllegalAddress);
    return;
  }
  // Nobody else may rely on what is in the workspace.
  if (workspace_bytes > 0) memset(workspace, 0xff, workspace_bytes);
  LtMultiply(call);
}

}  // namespace
}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cublasLtHandle_t>(new Handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (!IsHandle(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete reinterpret_cast<Handle*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
size_t cublasLtGetCudartVersion() { return CUDART_VERSION; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_UNKNOWN";
  }
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t columns,
                                                 int64_t ld) {
  return Place(layout, size, LtLayout{.type = type, .rows = rows, .columns = columns, .ld = ld});
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  *layout = new cublasLtMatrixLayoutOpaque_t;
  return cublasLtMatrixLayoutInit(*layout, type, rows, columns, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  return SetField(LayoutField(As<LtLayout>(layout), attribute), value, bytes);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                void* value, size_t bytes, size_t* written) {
  return GetField(LayoutField(As<LtLayout>(layout), attribute), value, bytes, written);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  return Place(desc, size, LtDesc{.compute = compute, .scale_type = scale});
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new cublasLtMatmulDescOpaque_t;
  return cublasLtMatmulDescInit(*desc, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  return SetField(DescField(As<LtDesc>(desc), attribute), value, bytes);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, void* value,
                                              size_t bytes, size_t* written) {
  return GetField(DescField(As<LtDesc>(desc), attribute), value, bytes, written);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size) {
  return Place(preference, size, LtPreference{});
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return cublasLtMatmulPreferenceInit(*preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  return SetField(PreferenceField(As<LtPreference>(preference), attribute), value, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    void* value, size_t bytes, size_t* written) {
  return GetField(PreferenceField(As<LtPreference>(preference), attribute), value, bytes, written);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* returned) {
  if (!IsHandle(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (returned) *returned = 0;
  if (!desc || !a || !b || !c || !d || !preference || !results || !returned || requested < 1) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const LtProblem p = ProblemOf(desc, a, b, c, d);
  if (const cublasStatus_t s = CheckProblem(p, Capability()); s != CUBLAS_STATUS_SUCCESS) return s;
  LtAlgorithm algorithms[2];
  const int count =
      ChooseAlgorithms(p, As<LtPreference>(preference), requested < 2 ? 1 : 2, algorithms);
  for (int i = 0; i < count; ++i) {
    results[i] = {};
    As<LtAlgorithm>(&results[i].algo) = algorithms[i];
    results[i].workspaceSize = algorithms[i].workspace_bytes;
    results[i].state = CUBLAS_STATUS_SUCCESS;
    results[i].wavesCount = 1;
  }
  *returned = count;
  return count > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algorithm,
                                       cublasLtMatmulHeuristicResult_t* result) {
  if (!IsHandle(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!algorithm || !result) return CUBLAS_STATUS_INVALID_VALUE;
  const LtProblem p = ProblemOf(desc, a, b, c, d);
  if (const cublasStatus_t s = CheckProblem(p, Capability()); s != CUBLAS_STATUS_SUCCESS) return s;
  const LtAlgorithm& own = As<LtAlgorithm>(algorithm);
  if (!Fits(own, p)) return CUBLAS_STATUS_NOT_SUPPORTED;
  const cublasLtMatmulAlgo_t copy = *algorithm;  // may lie in the result
  *result = {};
  result->algo = copy;
  result->workspaceSize = As<LtAlgorithm>(&copy).workspace_bytes;
  result->state = CUBLAS_STATUS_SUCCESS;
  result->wavesCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t layout_a, const void* b,
                              cublasLtMatrixLayout_t layout_b, const void* beta, const void* c,
                              cublasLtMatrixLayout_t layout_c, void* d,
                              cublasLtMatrixLayout_t layout_d,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!IsHandle(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!desc || !alpha || !beta || !a || !b || !c || !d || !layout_a || !layout_b || !layout_c ||
      !layout_d) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const LtProblem p = ProblemOf(desc, layout_a, layout_b, layout_c, layout_d);
  if (const cublasStatus_t s = CheckProblem(p, Capability()); s != CUBLAS_STATUS_SUCCESS) return s;
  LtAlgorithm chosen;
  if (algorithm) {
    chosen = As<LtAlgorithm>(algorithm);
    if (!Fits(chosen, p)) return CUBLAS_STATUS_INVALID_VALUE;
  } else {
    LtPreference preference;
    preference.workspace_bytes = workspace_bytes;
    if (ChooseAlgorithms(p, preference, 1, &chosen) == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (workspace_bytes < chosen.workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  if (chosen.workspace_bytes > 0 &&
      (!Aligned(workspace, 16) || !IsDeviceUsable(workspace, chosen.workspace_bytes))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!Aligned(a, chosen.alignment_a) || !Aligned(b, chosen.alignment_b) ||
      !Aligned(c, chosen.alignment_c) || !Aligned(d, chosen.alignment_d)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  // In place only if the layouts are the same.
  if (c == d && p.c->ld != p.d->ld) return CUBLAS_STATUS_INVALID_VALUE;

  LtCall call{*p.desc, *p.a, *p.b, *p.c, *p.d, a, b, c, d};
  switch (p.desc->pointer_mode) {
    case CUBLASLT_POINTER_MODE_HOST:
      call.alpha = *static_cast<const float*>(alpha);
      call.beta = *static_cast<const float*>(beta);
      break;
    case CUBLASLT_POINTER_MODE_DEVICE:
      call.device_alpha = static_cast<const float*>(alpha);
      call.device_beta = static_cast<const float*>(beta);
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const cudaError_t e = EnqueueTask(
      stream, "cublasLtMatmul",
      [call, workspace, used = chosen.workspace_bytes] { RunMatmul(call, workspace, used); });
  return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
