#include "worker/cuda/cublas_lt.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper

absl::Status CublasError(const char* operation, cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrFormat("%s: cuBLASLt says %s", operation, cublasLtGetStatusString(status));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return absl::UnimplementedError(message);
  return absl::InternalError(message);
}

#define RETURN_IF_CUBLAS_ERROR(operation, expression) \
  RETURN_IF_ERROR(CublasError(operation, expression))

template <class T>
absl::Status Set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, T value) {
  return CublasError("product",
                     cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value));
}

}  // namespace

CublasLt::Plan::~Plan() {
  if (y != nullptr) cublasLtMatrixLayoutDestroy(y);
  if (x != nullptr) cublasLtMatrixLayoutDestroy(x);
  if (w != nullptr) cublasLtMatrixLayoutDestroy(w);
  if (product != nullptr) cublasLtMatmulDescDestroy(product);
}

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Create() {
  std::unique_ptr<CublasLt> lt(new CublasLt);
  RETURN_IF_CUBLAS_ERROR("starting cuBLASLt", cublasLtCreate(&lt->handle_));
  RETURN_IF_CUBLAS_ERROR("preference", cublasLtMatmulPreferenceCreate(&lt->preference_));
  const auto bytes = static_cast<size_t>(kWorkspaceBytes);
  RETURN_IF_CUBLAS_ERROR(
      "preference",
      cublasLtMatmulPreferenceSetAttribute(
          lt->preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
  ASSIGN_OR_RETURN(lt->workspace_,
                   DeviceBuffer::Allocate(kWorkspaceBytes, "the workspace of cuBLASLt"));
  return lt;
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

CublasLt::Shape CublasLt::ShapeOf(const GpuMatrix& w, const ProductInput& in, int64_t rows,
                                  const ProductOutput& out) {
  return {.n = w.n,
          .k = w.k_stride,  // columns beyond k are zeros on both sides
          .rows = PaddedRows(rows),
          .w_stride = w.k_stride,
          .x_stride = in.stride,
          .y_stride = out.stride,
          .number = w.number,
          .fp32_out = out.epilogue == ProductEpilogue::kFp32};
}

// Column-major as the library has it: y^T [n, rows] = (W^T)^T x^T.
absl::StatusOr<std::unique_ptr<CublasLt::Plan>> CublasLt::MakePlan(const Shape& shape) {
  auto plan = std::make_unique<Plan>();
  const bool e4m3 = shape.number == GpuNumber::kE4m3;
  const cudaDataType_t in = e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  const cudaDataType_t out = shape.fp32_out ? CUDA_R_32F : CUDA_R_16BF;
  RETURN_IF_CUBLAS_ERROR("product",
                         cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  RETURN_IF_ERROR(Set(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  if (e4m3) {
    const int32_t per_row_and_column = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    RETURN_IF_ERROR(Set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, per_row_and_column));
    RETURN_IF_ERROR(Set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, per_row_and_column));
    // The choice looks at whether there are scales, though not at them.
    const void* const some = workspace_.data();
    RETURN_IF_ERROR(Set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, some));
    RETURN_IF_ERROR(Set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, some));
  }
  const auto layout = [](cublasLtMatrixLayout_t* l, cudaDataType_t type, int64_t rows,
                         int64_t columns, int64_t stride) {
    return CublasError("layout",
                       cublasLtMatrixLayoutCreate(l, type, static_cast<uint64_t>(rows),
                                                  static_cast<uint64_t>(columns), stride));
  };
  RETURN_IF_ERROR(layout(&plan->w, in, shape.k, shape.n, shape.w_stride));
  RETURN_IF_ERROR(layout(&plan->x, in, shape.k, shape.rows, shape.x_stride));
  RETURN_IF_ERROR(layout(&plan->y, out, shape.n, shape.rows, shape.y_stride));
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  RETURN_IF_CUBLAS_ERROR(
      "choice of an algorithm",
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->product, plan->w, plan->x, plan->y, plan->y,
                                     preference_, 1, &found, &count));
  if (count == 0) return absl::UnimplementedError("cuBLASLt has no algorithm for the shape");
  RETURN_IF_CUBLAS_ERROR("choice of an algorithm", found.state);
  plan->algorithm = found.algo;
  return plan;
}

absl::Status CublasLt::Prepare(const Shape& shape) {
  if (plans_.contains(shape)) return absl::OkStatus();
  ASSIGN_OR_RETURN(plans_[shape], MakePlan(shape));
  return absl::OkStatus();
}

absl::Status CublasLt::Product(const GpuMatrix& w, const ProductInput& in, int64_t rows,
                               const ProductOutput& out, cudaStream_t stream) {
  const Shape shape = ShapeOf(w, in, rows, out);
  const auto found = plans_.find(shape);
  if (found == plans_.end()) {
    return absl::InternalError(absl::StrFormat("a product of %d rows, %d x %d, was not prepared",
                                               shape.rows, shape.n, shape.k));
  }
  const Plan& plan = *found->second;
  if (w.number == GpuNumber::kE4m3) {
    RETURN_IF_ERROR(Set(plan.product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w.scale));
    RETURN_IF_ERROR(Set(plan.product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, in.scale));
  }
  const float one = 1, zero = 0;
  return CublasError(
      "product", cublasLtMatmul(handle_, plan.product, &one, w.data, plan.w, in.x, plan.x, &zero,
                                out.y, plan.y, out.y, plan.y, &plan.algorithm, workspace_.data(),
                                static_cast<size_t>(workspace_.bytes()), stream));
}

}  // namespace lapidary
