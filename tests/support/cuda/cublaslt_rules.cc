#include "tests/support/cuda/cublaslt_rules.h"

#include <algorithm>

namespace lapidary::standin {
namespace {

bool IsFp8(int32_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

uint64_t RowsOf(const LtLayout& l, int32_t transpose) {
  return transpose == CUBLAS_OP_N ? l.rows : l.columns;
}
uint64_t ColumnsOf(const LtLayout& l, int32_t transpose) {
  return transpose == CUBLAS_OP_N ? l.columns : l.rows;
}

cublasStatus_t CheckShapes(const LtProblem& p) {
  for (const LtLayout* l : {p.a, p.b, p.c, p.d}) {
    if (LtTypeBytes(l->type) == 0 || l->order != CUBLASLT_ORDER_COL) {
      return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (l->rows == 0 || l->columns == 0 || l->ld < static_cast<int64_t>(l->rows) || l->batch < 1 ||
        l->batch != p.d->batch) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  const LtDesc& desc = *p.desc;
  if (RowsOf(*p.a, desc.transpose_a) != p.m() || ColumnsOf(*p.b, desc.transpose_b) != p.n() ||
      ColumnsOf(*p.a, desc.transpose_a) != RowsOf(*p.b, desc.transpose_b) ||
      p.c->rows != p.d->rows || p.c->columns != p.d->columns) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  return CUBLAS_STATUS_SUCCESS;
}

// bf16 or fp16 operands to the same type or fp32; fp32 throughout.
bool PlainTypes(const LtProblem& p) {
  if (p.a->type != p.b->type || p.c->type != p.d->type) return false;
  if (p.a->type == CUDA_R_32F) return p.d->type == CUDA_R_32F;
  if (p.a->type != CUDA_R_16BF && p.a->type != CUDA_R_16F) return false;
  return p.d->type == p.a->type || p.d->type == CUDA_R_32F;
}

cublasStatus_t CheckPlain(const LtProblem& p) {
  const LtDesc& desc = *p.desc;
  if (!PlainTypes(p)) return CUBLAS_STATUS_NOT_SUPPORTED;
  // Scales belong to fp8.
  if (desc.scale_a || desc.scale_b || desc.scale_c || desc.scale_d || desc.scale_mode_a != 0 ||
      desc.scale_mode_b != 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CheckFp8(const LtProblem& p, int capability) {
  const LtDesc& desc = *p.desc;
  if (capability < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!IsFp8(p.b->type) || (p.a->type == CUDA_R_8F_E5M2 && p.b->type == CUDA_R_8F_E5M2)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  // A transposed, B not: the only form on sm_89, sm_90 and sm_120. (sm_100 takes others, too.)
  if (desc.transpose_a != CUBLAS_OP_T || desc.transpose_b != CUBLAS_OP_N) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (p.d->type != CUDA_R_16BF && p.d->type != CUDA_R_16F && p.d->type != CUDA_R_32F) {
    return CUBLAS_STATUS_NOT_SUPPORTED;  // fp8 results are not in the stand-in
  }
  if (p.c->type != p.d->type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (desc.scale_c || desc.scale_d || desc.largest_d) return CUBLAS_STATUS_NOT_SUPPORTED;
  // Dimensions and leading dimensions of 16 bytes, and of 16 elements of m.
  if (p.k() % 16 != 0 || p.m() % 16 != 0 || p.a->ld % 16 != 0 || p.b->ld % 16 != 0 ||
      p.d->ld * static_cast<int64_t>(LtTypeBytes(p.d->type)) % 16 != 0 ||
      p.c->ld * static_cast<int64_t>(LtTypeBytes(p.c->type)) % 16 != 0) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (desc.scale_mode_a != desc.scale_mode_b) return CUBLAS_STATUS_NOT_SUPPORTED;
  switch (desc.scale_mode_a) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F:
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
      // Hopper's alone (NVIDIA/CUDALibrarySamples issue 270).
      if (capability != 90) return CUBLAS_STATUS_NOT_SUPPORTED;
      // Seen on an H100: already the choice of an algorithm wants the scales.
      return desc.scale_a && desc.scale_b ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;  // block scales are not in the stand-in
  }
}

cublasStatus_t CheckEpilogue(const LtProblem& p) {
  const LtDesc& desc = *p.desc;
  if (desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
  if (desc.epilogue != CUBLASLT_EPILOGUE_BIAS) return CUBLAS_STATUS_NOT_SUPPORTED;
  const int32_t natural = p.is_fp8() && p.d->type == CUDA_R_32F ? CUDA_R_16BF : p.d->type;
  return desc.bias_type == -1 || desc.bias_type == natural ? CUBLAS_STATUS_SUCCESS
                                                           : CUBLAS_STATUS_NOT_SUPPORTED;
}

// The alignment that rows of a matrix keep: of its first element and of its leading dimension.
uint32_t RowAlignment(const LtLayout& l, uint32_t promised) {
  const uint64_t ld_bytes = static_cast<uint64_t>(l.ld) * LtTypeBytes(l.type);
  uint32_t alignment = 16;
  while (alignment > 1 && (promised % alignment != 0 || ld_bytes % alignment != 0)) alignment /= 2;
  return alignment;
}

}  // namespace

size_t LtTypeBytes(int32_t type) {
  switch (type) {
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2:
      return 1;
    default:
      return 0;
  }
}

cublasStatus_t CheckProblem(const LtProblem& p, int capability) {
  const LtDesc& desc = *p.desc;
  if (const cublasStatus_t s = CheckShapes(p); s != CUBLAS_STATUS_SUCCESS) return s;
  if (desc.compute != CUBLAS_COMPUTE_32F || desc.scale_type != CUDA_R_32F ||
      desc.transpose_c != CUBLAS_OP_N) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (const cublasStatus_t s = CheckEpilogue(p); s != CUBLAS_STATUS_SUCCESS) return s;
  return p.is_fp8() ? CheckFp8(p, capability) : CheckPlain(p);
}

int ChooseAlgorithms(const LtProblem& p, const LtPreference& preference, int most,
                     LtAlgorithm* algorithms) {
  LtAlgorithm plain;
  plain.magic = kLtMagic;
  plain.alignment_a = RowAlignment(*p.a, preference.alignment_a);
  plain.alignment_b = RowAlignment(*p.b, preference.alignment_b);
  plain.alignment_c = RowAlignment(*p.c, preference.alignment_c);
  plain.alignment_d = RowAlignment(*p.d, preference.alignment_d);
  plain.type_a = p.a->type;
  plain.type_b = p.b->type;
  plain.type_c = p.c->type;
  plain.type_d = p.d->type;
  plain.transpose_a = p.desc->transpose_a;
  plain.transpose_b = p.desc->transpose_b;
  if (p.is_fp8() && (plain.alignment_a < 16 || plain.alignment_b < 16 || plain.alignment_d < 16)) {
    return 0;
  }
  int count = 0;
  // Long sums with few results are split, which takes workspace.
  const uint64_t split_bytes = (p.m() * p.n() * 4 * 2 + 255) / 256 * 256;
  if (p.k() >= 1024 && p.m() * p.n() <= uint64_t{1} << 20 &&
      split_bytes <= preference.workspace_bytes && count < most) {
    algorithms[count] = plain;
    algorithms[count++].workspace_bytes = split_bytes;
  }
  if (count < most) algorithms[count++] = plain;
  return count;
}

bool Fits(const LtAlgorithm& algorithm, const LtProblem& p) {
  return algorithm.magic == kLtMagic && algorithm.type_a == p.a->type &&
         algorithm.type_b == p.b->type && algorithm.type_c == p.c->type &&
         algorithm.type_d == p.d->type && algorithm.transpose_a == p.desc->transpose_a &&
         algorithm.transpose_b == p.desc->transpose_b &&
         RowAlignment(*p.a, 256) >= algorithm.alignment_a &&
         RowAlignment(*p.b, 256) >= algorithm.alignment_b &&
         RowAlignment(*p.c, 256) >= algorithm.alignment_c &&
         RowAlignment(*p.d, 256) >= algorithm.alignment_d;
}

}  // namespace lapidary::standin
