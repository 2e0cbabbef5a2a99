// What the two products of experts with many tokens share: from a warp's sums to rows of y.
// Included by .cu files alone; everything is in an unnamed namespace.
#pragma once
#include "kernels/gemm/internal/product_tile.inc.h"

namespace lapidary {
namespace {

// A block's outputs on their way to y: bf16 [tokens][outputs + 8]. The 8 keep the banks of a
// fragment apart.
constexpr int kStagePad = 8;

// Scales of a block: null for bf16.
struct BlockScales {
  const float* weight = nullptr;  // of the block's first row
  int64_t rows = 0;               // that there are from it on
  const float* x = nullptr;
  const int32_t* row_of = nullptr;
  int64_t first_slot = 0;
  int count = 0;

  GPU_DEVICE float Weight(int row) const { return row < rows ? weight[row] : 0.0f; }
  GPU_DEVICE float X(int token) const {
    if (token >= count) return 0;
    const int64_t slot = first_slot + token;
    return x[row_of == nullptr ? slot : int64_t{row_of[slot]}];
  }
};

// Puts a warp's sums (rows from first_row, tokens from first_token of the block) into `staged`,
// rows of `outputs` outputs. Sums have outputs down and tokens across: each 8 x 8 block is turned.
template <bool kGated, int kM, int kN>
GPU_DEVICE void StageSums(float (&d)[kM][kN][4], int first_row, int first_token, int outputs,
                          const BlockScales& scales, uint8_t* staged, int lane) {
  const int g = lane / 4, t = lane % 4;
  const int stride = (outputs + kStagePad) * 2;  // bytes
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const int token = first_token + n * 8;
    float x0 = 1, x1 = 1;
    if (scales.weight != nullptr) {
      x0 = scales.X(token + 2 * t);
      x1 = scales.X(token + 2 * t + 1);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int row = first_row + m * 16;
      float v[4] = {d[m][n][0], d[m][n][1], d[m][n][2], d[m][n][3]};
      if (scales.weight != nullptr) {
        const float w0 = scales.Weight(row + g), w1 = scales.Weight(row + g + 8);
        v[0] *= x0 * w0, v[1] *= x1 * w0, v[2] *= x0 * w1, v[3] *= x1 * w1;
      }
      uint8_t* to = staged + (token + g) * stride + t * 4;
      if constexpr (kGated) {
        const uint32_t pair =
            gpu::Movmatrix(gpu::PackBf16(GeluTanh(v[0]) * v[2], GeluTanh(v[1]) * v[3]));
        gpu::Store(to + row, pair);  // output row / 2, 2 bytes
      } else {
        const uint32_t low = gpu::Movmatrix(gpu::PackBf16(v[0], v[1]));
        const uint32_t high = gpu::Movmatrix(gpu::PackBf16(v[2], v[3]));
        gpu::Store(to + row * 2, low);
        gpu::Store(to + row * 2 + 16, high);
      }
    }
  }
}

// Rows of y from what is staged: outputs [first_output, first_output + kOutputs) as far as `end`.
template <int kTokens, int kOutputs, int kThreads>
GPU_DEVICE void StoreStaged(const uint8_t* staged, const ProductOutput& out, int64_t first_slot,
                            int count, int64_t first_output, int64_t end, int thread) {
  constexpr int kStride = (kOutputs + kStagePad) * 2, kRowChunks = kOutputs / 8;
  __nv_bfloat16* y = static_cast<__nv_bfloat16*>(out.y) + first_slot * out.stride + first_output;
  if (RowsAligned(out, 2, 16)) {  // then `end` is a multiple of 8
#pragma unroll
    for (int pass = 0; pass < kTokens * kRowChunks / kThreads; ++pass) {
      const int i = thread + pass * kThreads;
      const int token = i / kRowChunks, chunk = i % kRowChunks;
      if (token >= count || first_output + chunk * 8 >= end) continue;
      gpu::Store(y + token * out.stride + chunk * 8,
                 gpu::Load<uint4>(staged + token * kStride + chunk * 16));
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < count * kOutputs; i += kThreads) {
    const int token = i / kOutputs, o = i % kOutputs;
    if (first_output + o >= end) continue;
    gpu::Store(y + token * out.stride + o, gpu::Load<uint16_t>(staged + token * kStride + o * 2));
  }
}

}  // namespace
}  // namespace lapidary
