// Dense products of many tokens through cuBLASLt: y [rows, n] = x [rows, k] W^T, row-major.
//
// An algorithm is asked for once per shape (Prepare, while loading) and kept: nothing is searched
// in the serving path. Rows are computed in multiples of kRowStep, so there are few shapes; buffers
// have that many rows, and what the last ones hold is nobody's.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "worker/cuda/cuda_memory.h"

namespace lapidary {

class CublasLt {
 public:
  static constexpr int64_t kRowStep = 64;
  static int64_t PaddedRows(int64_t rows) { return (rows + kRowStep - 1) / kRowStep * kRowStep; }

  static absl::StatusOr<std::unique_ptr<CublasLt>> Create();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // A shape: everything an algorithm depends on. Matrix row-major, 16-byte strides.
  struct Shape {
    int64_t n = 0, k = 0, rows = 0;                    // rows padded
    int64_t w_stride = 0, x_stride = 0, y_stride = 0;  // elements
    GpuNumber number = GpuNumber::kBf16;
    bool fp32_out = false;
    auto operator<=>(const Shape&) const = default;  // NOLINT(modernize-use-nullptr)
  };
  static Shape ShapeOf(const GpuMatrix& w, const ProductInput& in, int64_t rows,
                       const ProductOutput& out);

  // Looks for an algorithm. UNIMPLEMENTED: this library has none for it on this GPU (e4m3 with
  // scales per row and column needs sm_90 or later).
  absl::Status Prepare(const Shape& shape);
  bool IsPrepared(const Shape& shape) const { return plans_.contains(shape); }
  // Enqueues; out.epilogue kBf16 or kFp32 without soft cap.
  absl::Status Product(const GpuMatrix& w, const ProductInput& in, int64_t rows,
                       const ProductOutput& out, cudaStream_t stream);
  int64_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  struct Plan {
    ~Plan();
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
  };
  CublasLt() = default;
  absl::StatusOr<std::unique_ptr<Plan>> MakePlan(const Shape& shape);

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  DeviceBuffer workspace_;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
};

}  // namespace lapidary
