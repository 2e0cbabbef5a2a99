// y = W x on a GPU by our own kernels: weights are the M of the tensor-core product and tokens its
// N, so few tokens waste nothing and every weight is read once. Two uses: products of few tokens
// (weight streaming; many tokens go to cuBLASLt), and products of experts, whose tokens are known
// to the device alone (grouped).
//
//   y[t, o] = sum_k W[o, k] * x[t, k]        products exact, sums fp32
//
// Weights bf16, or e4m3 with a scale per output; x bf16, or e4m3 with a scale per row (both e4m3 or
// both bf16). e4m3 codes are widened to fp16 in registers, which is exact and keeps the sums in
// full fp32; blocks of 64 and 128 tokens use the e4m3 instruction where it is faster (sm_89,
// sm_120), whose sums keep about 13 bits. Epilogues: bf16 store, fp32 store with soft cap,
// gelu_tanh(gate) * up of gate and up rows interleaved by 8 (rows [16 i, 16 i + 8) gates, then the
// ups of outputs [8 i, 8 i + 8)).
//
// Nothing beyond k is read of a row-major matrix or of x, nothing beyond n stored but the zeros
// below. An output's bits depend on its row of W and of x and on the kind of plan alone: the same
// at every place, beside every other token. Streaming plans (all of PlanStream, PlanGrouped up to
// 32 tokens) even give the same bits as each other.
//
// Plan and launch are two calls; Launch allocates nothing and never synchronises. Errors:
// cudaErrorInvalidValue for a bad size or an unaligned pointer, else the launch's own.
// Ran on: emulation; no GPU yet
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/chip.h"
#include "kernels/host_device.h"

namespace lapidary {

enum class GpuNumber : uint8_t { kBf16, kE4m3 };
enum class ProductEpilogue : uint8_t { kBf16, kFp32, kGatedGelu };

// How a matrix [n, k] lies in device memory.
//   row-major  [n, k_stride], k_stride * element bytes a multiple of 16; what cuBLASLt reads too
//   tiled      tiles of 64 outputs x 128 bytes of k (64 bf16, 128 e4m3), 8 KiB each, [n / 64]
//              [k / ...], zeros beyond n and k; inside a tile row r is 128 bytes and its 16-byte
//              chunk c lies at c ^ (r % 8): one linear copy of a tile is ready for ldmatrix and
//              wgmma
struct GpuMatrix {
  const void* data = nullptr;
  const float* scale = nullptr;  // [n], e4m3 only
  GpuNumber number = GpuNumber::kBf16;
  bool tiled = false;
  int64_t n = 0, k = 0;
  int64_t k_stride = 0;  // elements, row-major only

  static constexpr int kTileRows = 64, kTileBytes = 8192;
  LAPIDARY_HOST_DEVICE constexpr int64_t element_bytes() const {
    return number == GpuNumber::kBf16 ? 2 : 1;
  }
  LAPIDARY_HOST_DEVICE constexpr int64_t tile_k() const { return 128 / element_bytes(); }
  LAPIDARY_HOST_DEVICE constexpr int64_t tiles_n() const { return (n + kTileRows - 1) / kTileRows; }
  LAPIDARY_HOST_DEVICE constexpr int64_t tiles_k() const { return (k + tile_k() - 1) / tile_k(); }
  LAPIDARY_HOST_DEVICE constexpr int64_t bytes() const {
    return tiled ? tiles_n() * tiles_k() * kTileBytes : n * k_stride * element_bytes();
  }
};

// Rows of x; element type that of the matrix.
struct ProductInput {
  const void* x = nullptr;       // [rows, stride], aligned to 16
  int64_t stride = 0;            // elements; * element bytes a multiple of 16, >= k
  const float* scale = nullptr;  // [rows], e4m3 only
};
struct ProductOutput {
  void* y = nullptr;  // [rows, stride]
  int64_t stride = 0;
  ProductEpilogue epilogue = ProductEpilogue::kBf16;
  float softcap = 0;  // kFp32: 0 is none
  // kGatedGelu: n is a multiple of 16, outputs are n / 2 of them; kBf16 and kGatedGelu write zeros
  // to [outputs, stride) up to the next multiple of 8.
};

// -- One matrix, few tokens.
struct StreamPlan {
  int token_tile = 8;  // 8, 16, 32 or 64 tokens a block
  int row_tile = 64;   // outputs a block: 16, 32 or 64
  int split_k = 4;     // warps of a block that share k: always 4
};
// Tokens up to which streaming is meant to be used (above: cuBLASLt).
inline constexpr int kMaxStreamTokens = 64;
StreamPlan PlanStream(const GpuMatrix& w, int tokens, const Chip& chip);
cudaError_t LaunchStreamProduct(const GpuMatrix& w, const ProductInput& in, int tokens,
                                const ProductOutput& out, const StreamPlan& plan, const Chip& chip,
                                cudaStream_t stream);

// -- Experts: tiled matrices of one shape, expert e at data + e * w.bytes() (scale + e * n), over
// slots sorted by expert. How many slots each has is known to the device alone.
struct GroupedParams {
  GpuMatrix w;  // of the first expert; tiled
  int experts = 0;
  const int32_t* begin = nullptr;   // [experts + 1]: slots [begin[e], begin[e + 1]) are expert e's
  const int32_t* row_of = nullptr;  // [slots]: x row of a slot; null: the slot itself
  ProductInput in;
  ProductOutput out;           // row: the slot; kBf16 or kGatedGelu
  int64_t max_slots = 0;       // bound of begin[experts], sizes the grid
  int64_t expected_slots = 0;  // how many there usually are, sizes the tile; 0: max_slots
};
struct GroupedPlan {
  int token_tile = 8;  // tokens of one expert a block takes: 8, 16, 32 (weights stream), 64, 128
  bool wgmma = false;  // sm_90a, bf16, 128 tokens: warpgroup products
  int row_tile = 64;   // outputs a block; 8 tokens: 64 or, to fill the chip, 16; 128 tokens: 128
};
// Experts whose slots the device can look up: begin[] fits a warp.
inline constexpr int kMaxGroupedExperts = 256;
GroupedPlan PlanGrouped(const GroupedParams& p, const Chip& chip);
cudaError_t LaunchGroupedProduct(const GroupedParams& p, const GroupedPlan& plan, const Chip& chip,
                                 cudaStream_t stream);

// -- Host: how a matrix is laid out before it is copied to the device.

// Places one row of a matrix (k elements: bf16 bits or e4m3 codes) where the device expects it, in
// a buffer of w.bytes() that was zeroed.
void PlaceMatrixRow(const GpuMatrix& w, int64_t row, const void* elements, uint8_t* matrix);

// Rows of a matrix for kGatedGelu with `width` outputs, and the row of an output's gate and up in
// it. Rows that are nobody's (width not a multiple of 8) stay zero and give outputs of zero.
constexpr int64_t GatedRows(int64_t width) { return (width + 7) / 8 * 16; }
constexpr int64_t GateRow(int64_t output) { return output / 8 * 16 + output % 8; }
constexpr int64_t UpRow(int64_t output) { return GateRow(output) + 8; }

}  // namespace lapidary
