// Row operations of a GPU step that are neither norms nor products. Any width and alignment
// (fastest: rows aligned to 16 bytes); strides in elements; rows == 0 is a no-op; fp32 inside.
// Errors: cudaErrorInvalidValue for a bad size, else the launch's.
//
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace lapidary {

// ids[t] = sampled_from[t] < 0 ? known[t] : sampled[sampled_from[t]]: what earlier steps sampled,
// put where the step's ids are.
struct ResolveIdsParams {
  const int32_t* known = nullptr;         // [tokens]
  const int32_t* sampled_from = nullptr;  // [tokens]; null: all are known
  const int32_t* sampled = nullptr;
  int32_t* ids = nullptr;  // [tokens]
  int64_t tokens = 0;
};
cudaError_t LaunchResolveIds(const ResolveIdsParams& p, cudaStream_t stream);

// x[t] = table[ids[t] - first_id] * scale; rows of other ranks' ids become 0.
struct EmbedParams {
  const int32_t* ids = nullptr;          // [tokens]
  const __nv_bfloat16* table = nullptr;  // [vocab_rows, table_stride]: the head's rows
  int64_t table_stride = 0;
  int64_t first_id = 0, vocab_rows = 0;
  float scale = 1;
  float* x = nullptr;  // [tokens, x_stride]
  int64_t x_stride = 0;
  int64_t tokens = 0;
  int64_t dim = 0;
};
cudaError_t LaunchEmbed(const EmbedParams& p, cudaStream_t stream);

// out[r, j] = gelu_tanh(gate) * up of a product whose gate and up columns are interleaved by 8: in
// columns [16 i, 16 i + 8) the gates, then the ups of outputs [8 i, 8 i + 8).
struct GatedGeluParams {
  const __nv_bfloat16* gate_up = nullptr;  // [rows, in_stride]
  int64_t in_stride = 0;
  __nv_bfloat16* out = nullptr;  // [rows, out_stride]
  int64_t out_stride = 0;        // columns [width, out_stride) are set to 0
  int64_t rows = 0;
  int64_t width = 0;  // outputs; gate_up has 2 * (width rounded up to 8) columns
};
cudaError_t LaunchGatedGelu(const GatedGeluParams& p, cudaStream_t stream);

// out[r, i] = gelu_tanh(gate[r, i]) * ple[r, first + i]: a layer's gate over its embedding.
struct GateEmbeddingParams {
  const __nv_bfloat16* gate = nullptr;  // [rows, gate_stride]
  int64_t gate_stride = 0;
  const float* ple = nullptr;  // [rows, ple_stride]
  int64_t ple_stride = 0, first = 0;
  __nv_bfloat16* out = nullptr;  // [rows, out_stride]; columns [dim, out_stride) become 0
  int64_t out_stride = 0;
  int64_t rows = 0, dim = 0;
};
cudaError_t LaunchGateEmbedding(const GateEmbeddingParams& p, cudaStream_t stream);

// ple[t, l, :] = (norm(projected[t, l, :] * projection_scale) * w + table[ids[t], l, :] *
// table_scale) * 2^-1/2. An id outside the table has no row: zeros.
struct MixEmbeddingsParams {
  const int32_t* ids = nullptr;              // [tokens]
  const __nv_bfloat16* projected = nullptr;  // [tokens, projected_stride]
  int64_t projected_stride = 0;
  const __nv_bfloat16* table = nullptr;  // [table_rows, layers * dim]: device or mapped host memory
  int64_t table_rows = 0;
  const float* w = nullptr;  // [dim]
  float projection_scale = 1, table_scale = 1, eps = 1e-6f;
  float* ple = nullptr;  // [tokens, ple_stride]
  int64_t ple_stride = 0;
  int64_t tokens = 0, layers = 0, dim = 0;
};
cudaError_t LaunchMixEmbeddings(const MixEmbeddingsParams& p, cudaStream_t stream);

// out row r = in row row_of[r], `row_bytes` bytes each (a multiple of 4). Out of place.
struct GatherRowsParams {
  const void* in = nullptr;
  int64_t in_stride_bytes = 0;
  void* out = nullptr;
  int64_t out_stride_bytes = 0;
  const int32_t* row_of = nullptr;  // [rows]
  int64_t rows = 0, row_bytes = 0;
};
cudaError_t LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream);

// x = cap * tanh(x / cap), fp32, in place.
struct SoftCapParams {
  float* x = nullptr;  // [rows, stride]
  int64_t stride = 0;
  int64_t rows = 0, dim = 0;
  float cap = 30;
};
cudaError_t LaunchSoftCap(const SoftCapParams& p, cudaStream_t stream);

// y = x rounded to bf16, as products read it.
struct RoundRowsParams {
  const float* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  __nv_bfloat16* y = nullptr;  // [rows, y_stride]; columns [dim, y_stride) become 0
  int64_t y_stride = 0;
  int64_t rows = 0, dim = 0;
};
cudaError_t LaunchRoundRows(const RoundRowsParams& p, cudaStream_t stream);

// codes = e4m3(x / scale), nearest even, scale = largest of the row / 448 (1 where that is below
// 2^-126: a row of zeros).
struct QuantizeRowsParams {
  const __nv_bfloat16* x = nullptr;  // [rows, x_stride]
  int64_t x_stride = 0;
  uint8_t* codes = nullptr;  // [rows, codes_stride]; columns [dim, codes_stride) become 0
  int64_t codes_stride = 0;
  float* scale = nullptr;  // [rows]
  int64_t rows = 0, dim = 0;
};
cudaError_t LaunchQuantizeRows(const QuantizeRowsParams& p, cudaStream_t stream);

// cos_sin[t] = cosines, then sines, of the fp32 product positions[t] * frequency[i], i < pairs; to
// 2^-23 for angles up to 2^23.
struct RotationParams {
  const int32_t* positions = nullptr;  // [tokens]
  const float* frequency = nullptr;    // [pairs]
  float* cos_sin = nullptr;            // [tokens, 2 * pairs]
  int64_t tokens = 0;
  int pairs = 0;
};
cudaError_t LaunchRotation(const RotationParams& p, cudaStream_t stream);

}  // namespace lapidary
