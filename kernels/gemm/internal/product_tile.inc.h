// What the device products share: tiles of 128-byte rows in shared memory, how a warp multiplies
// them, and what happens to a sum before it is stored. Included by .cu files alone; everything is
// in an unnamed namespace.
//
// A tile row is 128 bytes of k (64 bf16 or 128 e4m3); 16-byte chunk c of row r lies at c ^ (r % 8),
// so the eight rows that ldmatrix reads at once lie in different banks.
#pragma once
#include "kernels/elementwise/gelu.h"
#include "kernels/gemm/stream_product_cuda.h"
#include "kernels/gpu.h"

namespace lapidary {
namespace {

// How two tiles are multiplied.
//   kBf16     as they are
//   kWidened  e4m3 made fp16 in registers: exact, every chip, sums in full fp32
//   kE4m3     the e4m3 instruction: twice the rate where the chip has it (sm_89, sm_120; on sm_90
//   and
//             sm_100 it is expanded into the same conversions), but its sums keep about 13 bits
enum class TileMath { kBf16, kWidened, kE4m3 };
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 890 && __CUDA_ARCH__ < 1200
constexpr bool kHasFastE4m3 = false;
#else
constexpr bool kHasFastE4m3 = true;
#endif

constexpr int kTileRowBytes = 128;
constexpr int kChunk = 16;
constexpr int kChunks = kTileRowBytes / kChunk;

GPU_DEVICE int ChunkOffset(int row, int chunk) {
  return row * kTileRowBytes + ((chunk ^ (row & 7)) << 4);
}

// d += a b^T over 16 bf16 or 32 e4m3 of k: a of 16 rows, b of 8, fragments as ldmatrix gives them.
template <TileMath kMath>
GPU_DEVICE void MultiplyFragments(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kMath == TileMath::kBf16) {
    gpu::MmaBf16(d, a, b0, b1);
  } else {
#if GPU_HAS_E4M3
    gpu::MmaE4m3(d, a, b0, b1);
#endif
  }
}

// d [16 kM, 8 kN] += a b^T over one 128-byte tile of k. `a` and `b` are rows of shared tiles at a
// multiple of 8 rows; the two 8-row halves of d[m][n] are as the instruction has them.
template <TileMath kMath, int kM, int kN>
GPU_DEVICE void MultiplyTiles(float (&d)[kM][kN][4], const uint8_t* a, const uint8_t* b, int lane) {
  // Row and chunk of this lane's ldmatrix addresses. Chunk numbers are even plus 0 or 1 (or a
  // multiple of 4 plus 0 to 3), so the swizzle is an exclusive or with the step's first chunk.
  const int a_lane = ChunkOffset(lane & 15, lane >> 4);
  const int b_lane = kN == 1 ? ChunkOffset(lane & 7, lane >> 3)
                             : ChunkOffset((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  uint32_t b_ahead[2] = {};  // kN == 1: the next step's half of an Ldmatrix4
#pragma unroll
  for (int step = 0; step < kChunks / 2; ++step) {
    const int flip = step * 2 * kChunk;
    uint32_t b_frag[kN][2];
    if constexpr (kN == 1) {
      if (step % 2 == 0) {
        uint32_t r[4];
        gpu::Ldmatrix4(r, b + (b_lane ^ flip));
        b_frag[0][0] = r[0], b_frag[0][1] = r[1];
        b_ahead[0] = r[2], b_ahead[1] = r[3];
      } else {
        b_frag[0][0] = b_ahead[0], b_frag[0][1] = b_ahead[1];
      }
    } else {
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t r[4];
        gpu::Ldmatrix4(r, b + n * 8 * kTileRowBytes + (b_lane ^ flip));
        b_frag[n][0] = r[0], b_frag[n][1] = r[1];
        b_frag[n + 1][0] = r[2], b_frag[n + 1][1] = r[3];
      }
    }
    if constexpr (kMath == TileMath::kWidened) {
      // A register's 4 codes become two pairs; which k they stand for is the same on both sides.
      uint32_t b_wide[kN][4];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        gpu::WidenE4m3(b_frag[n][0], &b_wide[n][0], &b_wide[n][1]);
        gpu::WidenE4m3(b_frag[n][1], &b_wide[n][2], &b_wide[n][3]);
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t r[4], low[4], high[4];  // k 0 to 15, 16 to 31 of the step
        gpu::Ldmatrix4(r, a + m * 16 * kTileRowBytes + (a_lane ^ flip));
        gpu::WidenE4m3(r[0], &low[0], &low[2]);
        gpu::WidenE4m3(r[1], &low[1], &low[3]);
        gpu::WidenE4m3(r[2], &high[0], &high[2]);
        gpu::WidenE4m3(r[3], &high[1], &high[3]);
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          gpu::MmaF16(d[m][n], low, b_wide[n][0], b_wide[n][1]);
          gpu::MmaF16(d[m][n], high, b_wide[n][2], b_wide[n][3]);
        }
      }
    } else {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t r[4];
        gpu::Ldmatrix4(r, a + m * 16 * kTileRowBytes + (a_lane ^ flip));
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          MultiplyFragments<kMath>(d[m][n], r, b_frag[n][0], b_frag[n][1]);
        }
      }
    }
  }
}

template <int kM, int kN>
GPU_DEVICE void SetZero(float (&d)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d[m][n][i] = 0;
    }
  }
}

// Outputs of a row that are written: the row's own and, for bf16, zeros up to the next multiple of
// 8 as far as the row reaches.
GPU_DEVICE int64_t WrittenOutputs(const ProductOutput& out, int64_t n) {
  if (out.epilogue == ProductEpilogue::kFp32) return n;
  const int64_t outputs = out.epilogue == ProductEpilogue::kGatedGelu ? n / 2 : n;
  const int64_t padded = (outputs + 7) / 8 * 8;
  return padded < out.stride ? padded : out.stride;
}

// A row's address in y and whether rows take aligned stores of `bytes`.
GPU_DEVICE bool RowsAligned(const ProductOutput& out, int element_bytes, int bytes) {
  return (reinterpret_cast<uintptr_t>(out.y) | static_cast<uintptr_t>(out.stride * element_bytes)) %
             bytes ==
         0;
}

}  // namespace
}  // namespace lapidary
