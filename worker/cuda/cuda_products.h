// Which product runs where: few rows on our own streaming kernel, many through cuBLASLt.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/chip.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "worker/cuda/cublas_lt.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/cuda/cuda_workspace.h"

namespace lapidary {

class CudaProducts {
 public:
  CudaProducts(const Chip& chip, CudaStream& stream) : chip_(chip), stream_(stream) {}

  struct Sizes {
    int64_t rows = 0;     // of a step
    int64_t gate_up = 0;  // columns of the widest MLP's gate and up
    // e4m3 copies of inputs; 0: none are made.
    int64_t code_rows = 0, code_bytes = 0;
  };
  absl::Status Init(CudaWorkspace& workspace, const Sizes& sizes);
  // Algorithms for row counts up to max_rows of matrices with these strides of input and output.
  absl::Status Prepare(const GpuMatrix& w, int64_t x_stride, const ProductOutput& out,
                       int64_t max_rows);

  // y = W x, rows of bf16; quantised first when the matrix is e4m3.
  void Multiply(const char* name, const GpuMatrix& w, const __nv_bfloat16* x, int64_t x_stride,
                int64_t rows, const ProductOutput& out);
  // The same with the input in the matrix's own numbers.
  void Multiply(const char* name, const GpuMatrix& w, const ProductInput& in, int64_t rows,
                const ProductOutput& out);
  // out = gelu(gate) * up of interleaved rows.
  void Gated(const char* name, const GpuMatrix& w, const ProductInput& in, int64_t rows,
             __nv_bfloat16* out, int64_t out_stride, int64_t width);
  // Rows of bf16 in e4m3, in this class's scratch.
  ProductInput Quantized(const __nv_bfloat16* x, int64_t x_stride, int64_t rows, int64_t dim);
  int64_t gate_up_stride() const { return gate_up_stride_; }
  uint8_t* codes() const { return codes_; }
  float* code_scales() const { return code_scales_; }
  static int64_t CodesStride(int64_t dim) { return (dim + 15) / 16 * 16; }

  int64_t workspace_bytes() const { return lt_ == nullptr ? 0 : lt_->workspace_bytes(); }

 private:
  void Stream(const char* name, const GpuMatrix& w, const ProductInput& in, int64_t rows,
              const ProductOutput& out);

  const Chip chip_;
  CudaStream& stream_;
  std::unique_ptr<CublasLt> lt_;
  __nv_bfloat16* gate_up_ = nullptr;
  int64_t gate_up_stride_ = 0;
  uint8_t* codes_ = nullptr;
  float* code_scales_ = nullptr;
};

}  // namespace lapidary
