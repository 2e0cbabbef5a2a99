// RMS norms on a GPU, with what stands around them: residual, post norms, layer scalar.
//
//   norm(x)[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]        (Gemma 3: the caller passes 1 + w)
//
// Sums in fp32, in an order that the width alone decides, whatever else is in the batch. Rows may
// be any width and alignment (fastest: all rows aligned to 16 bytes); strides are in elements. A
// row of up to 6144 is read once. rows == 0 is a no-op. Errors: cudaErrorInvalidValue for a bad
// size, else the launch's.
//
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

struct RmsNormParams {
  const float* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  const int32_t* row_of = nullptr;  // [rows]: output row r is of x row row_of[r]; null: r
  const float* w = nullptr;         // [dim]; null: no factor
  int64_t rows = 0;
  int64_t dim = 0;
  float eps = 1e-6f;
  // One of the three. Columns [dim, y_stride) are set to 0: products read whole chunks of 8.
  __nv_bfloat16* y_bf16 = nullptr;
  float* y_fp32 = nullptr;
  // With y_scale [rows]: value = code * scale, scale = largest / 448 (1 below 2^-126).
  uint8_t* y_e4m3 = nullptr;
  float* y_scale = nullptr;
  int64_t y_stride = 0;
};
cudaError_t LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream);

// x[r] = (x[r] + norm(f[r]) * w) * scalar: post norm of a summand, residual, layer scalar.
struct AddNormedParams {
  const __nv_bfloat16* f = nullptr;  // [rows, f_stride]
  int64_t f_stride = 0;
  const float* w = nullptr;  // [dim]
  float* x = nullptr;        // [rows, x_stride], in place
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t dim = 0;
  float eps = 1e-6f;
  float scalar = 1.0f;
};
cudaError_t LaunchAddNormed(const AddNormedParams& p, cudaStream_t stream);

// g = norm(dense[r]) * w_dense + norm(experts[r]) * w_experts
// x[r] = (x[r] + norm(g) * w) * scalar
struct AddNormedPairParams {
  const __nv_bfloat16* dense = nullptr;    // [rows, f_stride]
  const __nv_bfloat16* experts = nullptr;  // [rows, f_stride]
  int64_t f_stride = 0;
  const float *w_dense = nullptr, *w_experts = nullptr, *w = nullptr;  // [dim]
  float* x = nullptr;                                                  // [rows, x_stride], in place
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t dim = 0;
  float eps = 1e-6f;
  float scalar = 1.0f;
};
cudaError_t LaunchAddNormedPair(const AddNormedPairParams& p, cudaStream_t stream);

}  // namespace lapidary
