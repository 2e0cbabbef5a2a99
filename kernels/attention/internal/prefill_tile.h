// Device code of the prefill kernel (paged_prefill.cu): what a block does with one step of pages.
#pragma once
#include "kernels/attention/internal/page_ring.h"
#include "kernels/attention/internal/visible_keys.h"
#include "kernels/attention/paged_attention_plan.h"

namespace lapidary {

// Byte offsets of 16-column blocks in one row of a swizzled bf16 tile, for a lane that reads chunk
// `second` of each: four registers, since the swizzle repeats every 128 bytes.
struct LaneBlocks {
  int byte[4];

  GPU_DEVICE LaneBlocks(int row_bytes, int row, int first_block, int second) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      byte[i] = row * row_bytes + ((2 * (first_block + i) + second) ^ (row & 7)) * 16;
    }
  }
  // Of block first_block + i. For i >= 4 first_block must be a multiple of 4.
  GPU_DEVICE int operator()(int i) const { return byte[i % 4] + i / 4 * 128; }
};

template <class ShapeT, int kRowsT, int kPagesT, int kStagesT, int kWarpsT, bool kBulkT>
struct Prefill {
  using Shape = ShapeT;
  static constexpr int kRows = kRowsT, kPages = kPagesT, kStages = kStagesT, kWarps = kWarpsT;
  static constexpr bool kBulk = kBulkT;
  static constexpr PrefillTiles kTiles{kRows, kPages, kStages, kWarps};
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kKeys = kPages * kPageTokens;
  using Ring = PageRing<Shape, kPages, kStages, kThreads, kBulk>;

  // Scores: a warp has 16 rows, and all keys of a step or half of them.
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kKeyParts = kWarps / kRowTiles;
  static constexpr int kWarpKeys = kKeys / kKeyParts;
  static constexpr int kKeyTiles = kWarpKeys / 8;
  static_assert(kKeyParts == 1 || kKeyParts == 2);

  // Outputs: a warp has kOutRowTiles times 16 rows and kOutBlocks times 16 columns.
  static constexpr int kMaxColumnParts = Shape::kHeadDim == 512 ? 8 : Shape::kHeadDim == 64 ? 2 : 4;
  static constexpr int kColumnParts = kWarps < kMaxColumnParts ? kWarps : kMaxColumnParts;
  static constexpr int kOutRowTiles = kRowTiles / (kWarps / kColumnParts);
  static constexpr int kOutBlocks = Shape::kHeadDim / 16 / kColumnParts;
  static_assert(kOutBlocks <= 4 || kOutBlocks % 4 == 0);

  static constexpr int kQueryRowBytes = Shape::kScoreColumns * 2;
  static constexpr int kWideRowBytes = Shape::WideLayout().row_bytes();
  static constexpr int kWideTileBytes = Shape::WideLayout().tile_bytes();
  // From page to page of the tiles that products read.
  static constexpr int kPageBytes = Shape::kE4m3 ? kWideTileBytes : Shape::kHeadBytes;
  static_assert(kRows * kQueryRowBytes >= kRows * Shape::kHeadDim * 2);

  // -- Shared memory.
  struct Shared {
    uint8_t *queries, *ring, *wide, *weights;
    float* factors;   // [rows]
    float* exchange;  // [2][rows]
    uint8_t* barriers;

    GPU_DEVICE explicit Shared(uint8_t* base) {
      queries = base;
      ring = queries + kRows * kQueryRowBytes;
      wide = ring + kStages * Ring::kStageBytes;
      weights = wide + (Shape::kE4m3 ? kPages * kWideTileBytes : 0);
      factors = reinterpret_cast<float*>(weights + kRows * kKeys * 2);
      exchange = factors + kRows;
      barriers = reinterpret_cast<uint8_t*>(exchange + 2 * kRows);
    }
  };
  // Byte of chunk c of a row of softmax weights: rows shorter than 128 bytes share a swizzle.
  static GPU_DEVICE int WeightByte(int row, int chunk) {
    constexpr int kChunks = kKeys / 8, kRowsPerLine = 8 / kChunks;
    return (row * kChunks + (chunk ^ row / kRowsPerLine % kChunks)) * 16;
  }

  // Rows [first_row, first_row + kRows) of the block's tokens times heads; zeros behind row_count.
  static GPU_DEVICE void LoadQueries(const GpuAttentionParams& p, int64_t first_token,
                                     int first_head, int group, int first_row, int row_count,
                                     uint8_t* queries) {
    constexpr int kChunks = Shape::kScoreColumns / 8;
#pragma unroll 4
    for (int n = threadIdx.x; n < kRows * kChunks; n += kThreads) {
      const int row = n / kChunks, chunk = n % kChunks, at = first_row + row;
      const bool take = at < row_count;
      const int64_t head = (first_token + at / group) * p.q_heads + first_head + at % group;
      gpu::CpAsync16(queries + SwizzledByte<kQueryRowBytes>(row, chunk),
                     p.query + (take ? head * Shape::kScoreColumns + chunk * 8 : 0), take);
    }
  }

  // A step of e4m3 pages as bf16 tiles.
  static GPU_DEVICE void Widen(const uint8_t* stage, uint8_t* wide) {
    constexpr int kValueChunks = Shape::kHeadDim / 16;
    constexpr int kChunks = kValueChunks + Shape::Layout().key_blocks();
    constexpr int kSkip = Shape::Layout().value_columns() / 16 - kValueChunks;
    constexpr int kWideSkip = Shape::WideLayout().value_columns() / 8 - 2 * kValueChunks;
#pragma unroll 2
    for (int n = threadIdx.x; n < kKeys * kChunks; n += kThreads) {
      const int page = n / (kPageTokens * kChunks), token = n / kChunks % kPageTokens;
      const int chunk = n % kChunks;
      const bool key = chunk >= kValueChunks;
      const uint4 codes =
          gpu::Load<uint4>(stage + page * Shape::kHeadBytes +
                           SwizzledByte<Shape::kRowBytes>(token, chunk + (key ? kSkip : 0)));
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      uint32_t pairs[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[2 * i] = WidenOdd((words[i] & 0xff) << 8 | (words[i] & 0xff00) << 16);
        pairs[2 * i + 1] = WidenOdd((words[i] >> 8 & 0xff00) | (words[i] & 0xff000000u));
      }
      // Chunks 2 c and 2 c + 1 of a row; eight lanes write to different banks when half of them
      // begins with the second.
      uint8_t* tile = wide + page * kWideTileBytes;
      const int to = 2 * chunk + (key ? kWideSkip : 0), swap = chunk >> 2 & 1;
      const uint4 low = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      const uint4 high = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
      gpu::Store(tile + SwizzledByte<kWideRowBytes>(token, to + swap), swap ? high : low);
      gpu::Store(tile + SwizzledByte<kWideRowBytes>(token, to + 1 - swap), swap ? low : high);
    }
  }

  // -- Scores and softmax: rows g and g + 8 of the warp's 16, keys 8 n + 2 t and + 1 of its keys.
  struct Rows {
    KeyRange keys[2];
    float largest[2];  // times log2 e
    float total[2];    // of this lane's keys

    GPU_DEVICE Rows(const GpuAttentionParams& p, const AttentionRun& run, int first_index,
                    int group, int first_row, int row_count) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + RowTile() * 16 + threadIdx.x % 32 / 4 + 8 * h;
        keys[h] = row < row_count ? VisibleKeys(p, run, first_index + row / group) : KeyRange{0, 0};
        largest[h] = -INFINITY;
        total[h] = 0;
      }
    }
  };
  static GPU_DEVICE int RowTile() { return threadIdx.x / 32 % kRowTiles; }
  static GPU_DEVICE int KeyPart() { return threadIdx.x / 32 / kRowTiles; }

  using Scores = float[kKeyTiles][4];

  static GPU_DEVICE void Score(const uint8_t* queries, const uint8_t* tiles, Scores& s) {
    constexpr GpuKvLayout kWide = Shape::WideLayout();
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    const LaneBlocks a_of(kQueryRowBytes, RowTile() * 16 + lane % 16, 0, lane / 16);
    if constexpr (kKeyTiles == 1) {
      // 8 keys: two blocks of columns to a load.
      const uint8_t* page = tiles + KeyPart() * 8 * kWideRowBytes;
      const int row = lane % 8, swizzle = KeyPart() * 8 + row;
      static_assert(kPages == 1);
      const int second = lane / 8 % 2, next = lane / 16;
      float other[4] = {};
#pragma unroll
      for (int j = 0; j < Shape::kScoreBlocks; j += 2) {
        uint32_t a0[4], a1[4], b[4];
        gpu::Ldmatrix4(a0, queries + a_of(j));
        gpu::Ldmatrix4(a1, queries + a_of(j + 1));
        const int chunk = (next ? kWide.ScoreBlock(j + 1) : kWide.ScoreBlock(j)) / 8 + second;
        gpu::Ldmatrix4(b, page + row * kWideRowBytes + (chunk ^ (swizzle & 7)) * 16);
        gpu::MmaBf16(s[0], a0, b[0], b[1]);
        gpu::MmaBf16(other, a1, b[2], b[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) s[0][i] += other[i];
    } else {
      const uint8_t* first = tiles + KeyPart() * (kPages / kKeyParts) * kPageBytes;
      const LaneBlocks b_of(kWideRowBytes, lane % 8 + lane / 16 * 8, 0, lane / 8 % 2);
#pragma unroll
      for (int j = 0; j < Shape::kScoreBlocks; ++j) {
        uint32_t a[4];
        gpu::Ldmatrix4(a, queries + a_of(j));
#pragma unroll
        for (int n = 0; n < kKeyTiles; n += 2) {
          uint32_t b[4];
          gpu::Ldmatrix4(b, first + n / 2 * kPageBytes + b_of(kWide.ScoreBlock(j) / 16));
          gpu::MmaBf16(s[n], a, b[0], b[1]);
          gpu::MmaBf16(s[n + 1], a, b[2], b[3]);
        }
      }
    }
  }

  // Scores times log2 e (and the keys' scales); -infinity where a row does not see the key.
  static GPU_DEVICE void Mask(Scores& s, const Rows& rows, int position, const uint8_t* stage) {
    const int t = threadIdx.x % 4, first = KeyPart() * kWarpKeys + 2 * t;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      float2 scale = make_float2(kLog2E, kLog2E);
      if constexpr (Shape::kE4m3) {
        const float2 keys = gpu::Load<float2>(Scales(stage, first + 8 * n, 0));
        scale.x *= keys.x, scale.y *= keys.y;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[n][2 * h] *= scale.x;
        s[n][2 * h + 1] *= scale.y;
      }
    }
    const int warp_begin = position + KeyPart() * kWarpKeys, warp_end = warp_begin + kWarpKeys;
    bool all = true;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      all = all && rows.keys[h].begin <= warp_begin && rows.keys[h].end >= warp_end;
    }
    if (__all_sync(0xffffffffu, all)) return;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = position + first + 8 * n + i % 2;
        const KeyRange& seen = rows.keys[i / 2];
        if (key < seen.begin || key >= seen.end) s[n][i] = -INFINITY;
      }
    }
  }

  // Scores become weights, in shared memory as bf16; factors say how earlier sums shrink.
  static GPU_DEVICE void Weigh(Scores& s, Rows& rows, const uint8_t* stage, const Shared& shared) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = rows.largest[h];
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        most[h] = fmaxf(most[h], fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      }
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 2));
    }
    if constexpr (kKeyParts == 2) {  // the other half of the keys
      const int row = RowTile() * 16 + g;
      float* mine = shared.exchange + KeyPart() * kRows + row;
      const float* others = shared.exchange + (1 - KeyPart()) * kRows + row;
      if (t == 0) {
        gpu::Store(mine, most[0]);
        gpu::Store(mine + 8, most[1]);
      }
      gpu::NamedBarrierSync(1 + RowTile(), 64);
      most[0] = fmaxf(most[0], gpu::Load<float>(others));
      most[1] = fmaxf(most[1], gpu::Load<float>(others + 8));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = RowTile() * 16 + g + 8 * h;
      // A row that has seen no key yet: any finite number gives weights of 0.
      const float base = most[h] == -INFINITY ? 0.0f : most[h];
      const float shrink = gpu::Exp2Approx(rows.largest[h] - base);
      rows.largest[h] = most[h];
      rows.total[h] *= shrink;
      if (KeyPart() == 0 && t == 0) gpu::Store(shared.factors + row, shrink);
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        float w0 = gpu::Exp2Approx(s[n][2 * h] - base),
              w1 = gpu::Exp2Approx(s[n][2 * h + 1] - base);
        rows.total[h] += w0 + w1;
        const int key = KeyPart() * kWarpKeys + 8 * n;
        if constexpr (Shape::kE4m3) {
          // A token that is not seen has weight 0, and a scale that may be anything.
          const float2 scale = gpu::Load<float2>(Scales(stage, key + 2 * t, kPageTokens));
          w0 = w0 > 0 ? w0 * scale.x : w0;
          w1 = w1 > 0 ? w1 * scale.y : w1;
        }
        gpu::Store(shared.weights + WeightByte(row, key / 8) + 4 * t, gpu::PackBf16(w0, w1));
      }
    }
  }
  static GPU_DEVICE const uint8_t* Scales(const uint8_t* stage, int key, int kind) {
    return stage + key / kPageTokens * Shape::kHeadBytes + Shape::kTileBytes +
           (kind + key % kPageTokens) * 4;
  }

  // -- Outputs: rows 16 m + g and + 8 of the warp's rows, columns 8 n + 2 t and + 1 of its columns.
  struct Out {
    float o[kOutRowTiles][2 * kOutBlocks][4];

    GPU_DEVICE Out() {
#pragma unroll
      for (int m = 0; m < kOutRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < 2 * kOutBlocks; ++n)
          o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
      }
    }

    // Each row times its factor.
    GPU_DEVICE void Scale(const float* factors) {
      const int first = FirstRow() + threadIdx.x % 32 / 4;
      float f[kOutRowTiles][2];
      bool one = true;
#pragma unroll
      for (int m = 0; m < kOutRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          f[m][h] = gpu::Load<float>(factors + first + 16 * m + 8 * h);
          one = one && f[m][h] == 1;
        }
      }
      if (__all_sync(0xffffffffu, one)) return;  // maxima seldom grow
#pragma unroll
      for (int m = 0; m < kOutRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < 2 * kOutBlocks; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) o[m][n][i] *= f[m][i / 2];
        }
      }
    }

    GPU_DEVICE void AddValues(const uint8_t* weights, const uint8_t* tiles) {
      const int lane = threadIdx.x % 32;
      const LaneBlocks b_of(kWideRowBytes, lane % 16, ColumnPart() * kOutBlocks, lane / 16);
#pragma unroll
      for (int page = 0; page < kPages; ++page) {
        uint32_t a[kOutRowTiles][4];
#pragma unroll
        for (int m = 0; m < kOutRowTiles; ++m) {
          gpu::Ldmatrix4(
              a[m], weights + WeightByte(FirstRow() + 16 * m + lane % 16, 2 * page + lane / 16));
        }
#pragma unroll
        for (int i = 0; i < kOutBlocks; ++i) {
          uint32_t b[4];
          gpu::Ldmatrix4Trans(b, tiles + page * kPageBytes + b_of(i));
#pragma unroll
          for (int m = 0; m < kOutRowTiles; ++m) {
            gpu::MmaBf16(o[m][2 * i], a[m], b[0], b[1]);
            gpu::MmaBf16(o[m][2 * i + 1], a[m], b[2], b[3]);
          }
        }
      }
    }

    // As bf16, [rows][head_dim], swizzled as page tiles are.
    GPU_DEVICE void Store(uint8_t* to) const {
      const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
      for (int m = 0; m < kOutRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < 2 * kOutBlocks; ++n) {
          const int chunk = ColumnPart() * 2 * kOutBlocks + n;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int row = FirstRow() + 16 * m + g + 8 * h;
            gpu::Store(to + SwizzledByte<Shape::kHeadDim * 2>(row, chunk) + 4 * t,
                       gpu::PackBf16(o[m][n][2 * h], o[m][n][2 * h + 1]));
          }
        }
      }
    }

    static GPU_DEVICE int ColumnPart() { return threadIdx.x / 32 % kColumnParts; }
    static GPU_DEVICE int FirstRow() { return threadIdx.x / 32 / kColumnParts * kOutRowTiles * 16; }
  };

  static GPU_DEVICE void WriteRows(const GpuAttentionParams& p, int64_t first_token, int first_head,
                                   int group, int first_row, int row_count, const uint8_t* from) {
    constexpr int kChunks = Shape::kHeadDim / 8;
    for (int n = threadIdx.x; n < kRows * kChunks; n += kThreads) {
      const int row = n / kChunks, chunk = n % kChunks, at = first_row + row;
      if (at >= row_count) break;
      gpu::Store(p.out + (first_token + at / group) * p.out_stride +
                     int64_t{first_head + at % group} * Shape::kHeadDim + chunk * 8,
                 gpu::Load<uint4>(from + SwizzledByte<Shape::kHeadDim * 2>(row, chunk)));
    }
  }
};

}  // namespace lapidary
