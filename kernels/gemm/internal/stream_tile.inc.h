// One block's share of a weight-streaming product: kRows outputs of up to kTokens tokens.
//
// Four warps split k: warp w takes k tiles w, w + 4, ... and keeps a ring of its own in shared
// memory, so the loop has no block barrier and each warp always has kStages tiles on their way. A
// buffer is refilled after its tile was multiplied, not before: multiplying takes a fraction of the
// time of reading, so nothing is lost and a stage is saved. The four sums meet in shared memory and
// are added in the order of the warps; which k a warp sums depends on nothing but k, so an output's
// bits are the same for every row and token tile.
#pragma once
#include "kernels/gemm/internal/product_tile.inc.h"
#include "kernels/gemm/stream_product_plan.h"

namespace lapidary {
namespace {

// How weights come in.
//   kAny    cp.async; the matrix says whether it is tiled
//   kTiled  cp.async, tiled
//   kBulk   tiled, one bulk copy a tile (sm_90)
enum class WeightSource { kAny, kTiled, kBulk };

// What a block computes.
struct StreamWork {
  const uint8_t* weights = nullptr;  // the matrix
  const float* weight_scale = nullptr;
  int64_t first_output = 0;         // row of the matrix, a multiple of kRows
  const int32_t* row_of = nullptr;  // x row of a slot; null: the slot itself
  int64_t first_slot = 0;           // of the block; also its first row of y
  int count = 0;                    // slots of the block, 1 to kTokens

  GPU_DEVICE int64_t XRow(int token) const {
    return row_of == nullptr ? first_slot + token : int64_t{row_of[first_slot + token]};
  }
};

// Brings tiles of k into a warp's buffers: kRows rows of weights, then kTokens rows of x.
template <int kRows, int kTokens, WeightSource kSource>
class StreamLoader {
 public:
  static constexpr int kWeightBytes = kRows * kTileRowBytes;

  GPU_DEVICE StreamLoader(const GpuMatrix& w, const ProductInput& in, const StreamWork& work,
                          int lane)
      : lane_(lane),
        tiled_(kSource != WeightSource::kAny || w.tiled),
        k_bytes_(w.k * w.element_bytes()) {
    const int row = lane / kChunks, chunk = lane % kChunks;
    if (tiled_) {
      const int64_t tile_row = work.first_output / GpuMatrix::kTileRows;
      weights_ = work.weights + tile_row * w.tiles_k() * GpuMatrix::kTileBytes +
                 work.first_output % GpuMatrix::kTileRows * kTileRowBytes;
      if (kSource != WeightSource::kBulk) weights_ += lane * kChunk;
    } else {
      stride_ = w.k_stride * w.element_bytes();
      weights_ = work.weights + (work.first_output + row) * stride_ + chunk * kChunk;
      const int64_t left = w.n - work.first_output - row;
      rows_left_ = static_cast<int>(left < kRows ? left : kRows);
    }
    x_ = static_cast<const uint8_t*>(in.x) + chunk * kChunk;
    x_stride_ = in.stride * w.element_bytes();
    tokens_left_ = work.count - row;
    if constexpr (kGathers) {
#pragma unroll
      for (int j = 0; j < kTokens / 4; ++j) {
        x_row_[j] = 4 * j < tokens_left_ ? static_cast<int32_t>(work.XRow(row + 4 * j)) : 0;
      }
    } else {
      x_ += (work.first_slot + row) * x_stride_;
    }
  }

  // Tile `tile` of k into `buffer`; `full` is the buffer's barrier (kBulk).
  GPU_DEVICE void Load(int tile, uint8_t* buffer, gpu::Mbarrier* full) const {
    const int row = lane_ / kChunks, chunk = lane_ % kChunks;
    const int64_t left = k_bytes_ - int64_t{tile} * kTileRowBytes - chunk * kChunk;
    const int bytes = static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk);
    if constexpr (kSource == WeightSource::kBulk) {
#if GPU_HAS_BULK_COPY
      if (lane_ == 0) {
        gpu::MbarrierArriveExpect(full, kWeightBytes);
        gpu::BulkCopyToShared(buffer, weights_ + int64_t{tile} * GpuMatrix::kTileBytes,
                              kWeightBytes, full);
      }
#endif
    } else if (tiled_) {
      const uint8_t* source = weights_ + int64_t{tile} * GpuMatrix::kTileBytes;
#pragma unroll
      for (int j = 0; j < kRows / 4; ++j) {
        gpu::CpAsync16(buffer + lane_ * kChunk + j * 4 * kTileRowBytes,
                       source + j * 4 * kTileRowBytes);
      }
    } else {
      const uint8_t* source = weights_ + int64_t{tile} * kTileRowBytes;
#pragma unroll
      for (int j = 0; j < kRows / 4; ++j) {
        gpu::CpAsyncUpTo16(buffer + ChunkOffset(row + 4 * j, chunk), source,
                           4 * j < rows_left_ ? bytes : 0);
        source += 4 * stride_;
      }
    }
    const uint8_t* x = x_ + int64_t{tile} * kTileRowBytes;
#pragma unroll
    for (int j = 0; j < kTokens / 4; ++j) {
      const uint8_t* source = x;
      if constexpr (kGathers) {
        source += x_row_[j] * x_stride_;
      } else {
        x += 4 * x_stride_;
      }
      gpu::CpAsyncUpTo16(buffer + kWeightBytes + ChunkOffset(row + 4 * j, chunk), source,
                         4 * j < tokens_left_ ? bytes : 0);
    }
  }

 private:
  // Slots have rows of their own; those of one matrix follow each other.
  static constexpr bool kGathers = kSource != WeightSource::kAny;

  const int lane_;
  const bool tiled_;
  const int64_t k_bytes_;
  const uint8_t* weights_ = nullptr;  // this lane's first chunk; kBulk: the tile
  int64_t stride_ = 0;                // bytes, row-major only
  int rows_left_ = 0;                 // in the matrix from this lane's first row on
  const uint8_t* x_ = nullptr;
  int64_t x_stride_ = 0;
  int32_t x_row_[kGathers ? kTokens / 4 : 1];
  int tokens_left_ = 0;  // of the block from this lane's first one on
};

// Sums of four warps as [warp][token][kRows + 4]: the 4 keeps the banks of a fragment apart.
template <int kRows, int kTokens>
GPU_DEVICE void StoreSums(float* sums, const float (&d)[kRows / 16][kTokens / 8][4], int warp,
                          int lane) {
  constexpr int kStride = kRows + 4;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < kRows / 16; ++m) {
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
      float* to = sums + (warp * kTokens + n * 8 + 2 * t) * kStride + m * 16 + g;
      to[0] = d[m][n][0];
      to[kStride] = d[m][n][1];
      to[8] = d[m][n][2];
      to[kStride + 8] = d[m][n][3];
    }
  }
}

// Four outputs of a token, from `row` on: added in the order of the warps, scaled. Gates and ups,
// and rows of fewer than 32 outputs, meet in two of a bank: once per block.
template <int kRows, int kTokens>
GPU_DEVICE float4 FoldSums(const float* sums, const GpuMatrix& w, const StreamWork& work,
                           float x_scale, int token, int row) {
  constexpr int kStride = kRows + 4;
  float4 v = gpu::Load<float4>(sums + token * kStride + row);
#pragma unroll
  for (int warp = 1; warp < kStreamWarps; ++warp) {
    const float4 more = gpu::Load<float4>(sums + (warp * kTokens + token) * kStride + row);
    v.x += more.x, v.y += more.y, v.z += more.z, v.w += more.w;
  }
  if (work.weight_scale != nullptr) {
    const int64_t o = work.first_output + row;
    v.x *= x_scale * (o < w.n ? work.weight_scale[o] : 0);
    v.y *= x_scale * (o + 1 < w.n ? work.weight_scale[o + 1] : 0);
    v.z *= x_scale * (o + 2 < w.n ? work.weight_scale[o + 2] : 0);
    v.w *= x_scale * (o + 3 < w.n ? work.weight_scale[o + 3] : 0);
  }
  return v;
}

// Outputs [o, o + 4) of row `to` of y, as far as they are below `end`.
GPU_DEVICE void StoreBf16(__nv_bfloat16* to, int64_t o, int64_t end, bool aligned, float4 v) {
  const uint2 pairs = {gpu::PackBf16(v.x, v.y), gpu::PackBf16(v.z, v.w)};
  if (aligned && o + 4 <= end) {
    gpu::Store(to + o, pairs);
    return;
  }
  const uint32_t bits[4] = {pairs.x, pairs.x >> 16, pairs.y, pairs.y >> 16};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (o + i < end) gpu::Store(to + o + i, static_cast<uint16_t>(bits[i]));
  }
}
GPU_DEVICE void StoreFp32(float* to, int64_t o, int64_t end, bool aligned, float4 v) {
  if (aligned && o + 4 <= end) {
    gpu::Store(to + o, v);
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (o + i < end) to[o + i] = values[i];
  }
}

template <int kRows, int kTokens, bool kGated>
GPU_DEVICE void FinishStream(const float* sums, const GpuMatrix& w, const ProductInput& in,
                             const ProductOutput& out, const StreamWork& work) {
  constexpr int kOutputs = kGated ? kRows / 2 : kRows, kQuads = kOutputs / 4;
  constexpr int kPasses = (kTokens * kQuads + kStreamThreads - 1) / kStreamThreads;
  const bool fp32 = out.epilogue == ProductEpilogue::kFp32;
  const bool aligned = RowsAligned(out, fp32 ? 4 : 2, fp32 ? 16 : 8);
  const int64_t end = WrittenOutputs(out, w.n);
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = static_cast<int>(threadIdx.x) + pass * kStreamThreads;
    const int token = i / kQuads, quad = i % kQuads;
    if (token >= work.count) break;
    const float x_scale = in.scale == nullptr ? 1.0f : in.scale[work.XRow(token)];
    const auto fold = [&](int row) {
      return FoldSums<kRows, kTokens>(sums, w, work, x_scale, token, row);
    };
    if constexpr (kGated) {
      // Outputs 4 quad ..: gates in rows [16 i, 16 i + 8), their ups in the next 8.
      const int row = quad / 2 * 16 + quad % 2 * 4;
      const float4 gate = fold(row), up = fold(row + 8);
      const float4 v = {GeluTanh(gate.x) * up.x, GeluTanh(gate.y) * up.y, GeluTanh(gate.z) * up.z,
                        GeluTanh(gate.w) * up.w};
      StoreBf16(static_cast<__nv_bfloat16*>(out.y) + (work.first_slot + token) * out.stride,
                work.first_output / 2 + quad * 4, end, aligned, v);
    } else if (fp32) {
      float4 v = fold(quad * 4);
      if (out.softcap != 0) {
        v = {out.softcap * tanhf(v.x / out.softcap), out.softcap * tanhf(v.y / out.softcap),
             out.softcap * tanhf(v.z / out.softcap), out.softcap * tanhf(v.w / out.softcap)};
      }
      StoreFp32(static_cast<float*>(out.y) + (work.first_slot + token) * out.stride,
                work.first_output + quad * 4, end, aligned, v);
    } else {
      StoreBf16(static_cast<__nv_bfloat16*>(out.y) + (work.first_slot + token) * out.stride,
                work.first_output + quad * 4, end, aligned, fold(quad * 4));
    }
  }
}

// The block's whole work.
template <TileMath kMath, int kRows, int kTokens, WeightSource kSource>
GPU_DEVICE void StreamBlock(const GpuMatrix& w, const ProductInput& in, const ProductOutput& out,
                            const StreamWork& work, uint8_t* shared) {
  constexpr int kStages = StreamStages(kRows, kTokens);
  constexpr int kStageBytes = StreamStageBytes(kRows, kTokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* ring = shared + warp * kStages * kStageBytes;
  gpu::Mbarrier* full =
      reinterpret_cast<gpu::Mbarrier*>(shared + kStreamWarps * kStages * kStageBytes) +
      warp * kStages;
  if constexpr (kSource == WeightSource::kBulk) {
#if GPU_HAS_BULK_COPY
    if (lane < kStages) gpu::MbarrierInit(full + lane, 1);
    gpu::FenceMbarrierInit();
    __syncthreads();
#endif
  }

  const StreamLoader<kRows, kTokens, kSource> loader(w, in, work, lane);
  const int tiles = (static_cast<int>(w.tiles_k()) - warp + kStreamWarps - 1) / kStreamWarps;
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage < tiles) {
      loader.Load(warp + stage * kStreamWarps, ring + stage * kStageBytes, full + stage);
    }
    gpu::CpAsyncCommit();
  }
  float d[kRows / 16][kTokens / 8][4];
  SetZero(d);
  int stage = 0;
  uint32_t parity = 0;  // of the ring's current round
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    uint8_t* buffer = ring + stage * kStageBytes;
    gpu::CpAsyncWait<kStages - 1>();
    if constexpr (kSource == WeightSource::kBulk) {
#if GPU_HAS_BULK_COPY
      gpu::MbarrierWait(full + stage, parity);
#endif
    }
    __syncwarp();
    MultiplyTiles<kMath>(d, buffer, buffer + kRows * kTileRowBytes, lane);
    __syncwarp();
    if (i + kStages < tiles) {
      loader.Load(warp + (i + kStages) * kStreamWarps, buffer, full + stage);
    }
    gpu::CpAsyncCommit();
    if (++stage == kStages) stage = 0, parity ^= 1;
  }

  __syncthreads();  // the rings become the place of the sums
  float* sums = reinterpret_cast<float*>(shared);
  StoreSums<kRows, kTokens>(sums, d, warp, lane);
  __syncthreads();
  if (out.epilogue == ProductEpilogue::kGatedGelu) {
    FinishStream<kRows, kTokens, true>(sums, w, in, out, work);
  } else {
    FinishStream<kRows, kTokens, false>(sums, w, in, out, work);
  }
}

}  // namespace
}  // namespace lapidary
