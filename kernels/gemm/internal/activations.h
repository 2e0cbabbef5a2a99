// Activations as the tile kernels read them: block-major, so that the rows of one K block lie side
// by side and every address inside a tile is one pointer plus a constant, whatever the batch.
#pragma once
#include <array>
#include <cstdint>

#include "kernels/gemm/internal/tile.h"
#include "kernels/gemm/matmul.h"

namespace lapidary {

// x [k/block][row_stride][block] int8; per row and block a scale and the accumulator's start value
// for each zero point that a weight format has.
struct Int8Rows {
  bool set = false;
  HugeBuffer x, scales, starts;
  int64_t row_blocks = 0;  // row_stride * k / block: elements of scales and of each plane of starts

  // The plane of starts; null for the zero points that need none (tile.h, Start).
  const int32_t* start(int zero_point) const;
};
inline constexpr std::array<int, 2> kPlaneZeroPoints = {16, 8};

struct ActivationRows::Impl {
  Arithmetic arithmetic = Arithmetic::kFmaAvx2;
  int64_t rows = 0, k = 0, padded_k = 0;
  int64_t row_stride = 0;  // rows from block to block, at least `rows`
  Int8Rows by32, by16;
  HugeBuffer floats;  // fp32 or bf16 [k/32][row_stride][32]
};

}  // namespace lapidary
