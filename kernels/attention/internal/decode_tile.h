// Device code of the decode kernel (paged_decode.cu): what a block does with one step of pages.
#pragma once
#include "kernels/attention/internal/page_ring.h"
#include "kernels/attention/paged_attention_plan.h"

namespace lapidary {

struct DecodeParams {
  GpuAttentionParams attention;
  const AttentionRun* runs;
  int splits;
  float* partial;  // [rows, q_heads, splits, head_dim]: sums that are not normalised
  float2* stats;   // [rows, q_heads, splits]: maximum (times log2 e), sum of weights
};

// The keys of a row that are a split's.
struct DecodeRange {
  int begin, end;  // positions
  int first_page, page_count;
};
GPU_DEVICE DecodeRange RangeOf(int position, int window, int split, int splits) {
  DecodeRange r;
  r.end = position + 1;
  r.begin = window > 0 ? max(r.end - window, 0) : 0;
  const int first = r.begin / kPageTokens, last = (r.end + kPageTokens - 1) / kPageTokens;
  const int share = PagesPerSplit(last - first, splits);
  r.first_page = min(first + split * share, last);
  r.page_count = min(share, last - r.first_page);
  // A step may reach beyond the split: those keys are another's.
  r.begin = max(r.begin, r.first_page * kPageTokens);
  r.end = min(r.end, (r.first_page + r.page_count) * kPageTokens);
  return r;
}

// kTiles: of 8 query heads.
template <class ShapeT, int kTilesT, bool kBulkT>
struct Decode {
  using Shape = ShapeT;
  static constexpr int kTiles = kTilesT;
  static constexpr bool kBulk = kBulkT;
  static constexpr int kWarps = kDecodeThreads / 32;
  static constexpr int kStepPages = DecodeStepPages(Shape::Layout());
  static constexpr int kStages = DecodeStages(Shape::Layout());
  using Ring = PageRing<Shape, kStepPages, kStages, kDecodeThreads, kBulk>;

  // Warps that share the score of a page, and blocks of 16 columns of each.
  static constexpr int kParts = kWarps / kStepPages;
  static constexpr int kBlocks = Shape::kScoreBlocks / kParts;
  // Blocks of 16 value columns of a warp.
  static constexpr int kValueBlocks = Shape::kHeadDim / 16 / kWarps;
  static_assert(Shape::kScoreBlocks % kParts == 0 && Shape::kHeadDim % (16 * kWarps) == 0);

  // Sums of one step's scores, [page][tile of heads]: tokens g and g + 8, heads 2 t and 2 t + 1.
  using Scores = float[kStepPages][kTiles][4];

  // The warp's part of the query: operand B, columns as the page's element type wants them.
  struct Query {
    uint32_t b[kBlocks][kTiles][2];

    GPU_DEVICE void Load(const __nv_bfloat16* query, int group) {
      const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
      const int first = threadIdx.x / 32 % kParts * kBlocks;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const bool exists = 8 * n + g < group;
        const __nv_bfloat16* head =
            query + int64_t{exists ? 8 * n + g : 0} * Shape::kScoreColumns + 16 * first;
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          if constexpr (Shape::kE4m3) {
            const uint2 four = gpu::Load<uint2>(head + 16 * j + 4 * t);
            b[j][n][0] = exists ? (four.x & 0xffff) | four.y << 16 : 0;
            b[j][n][1] = exists ? four.x >> 16 | (four.y & 0xffff0000u) : 0;
          } else {
            const uint32_t low = gpu::Load<uint32_t>(head + 16 * j + 2 * t);
            const uint32_t high = gpu::Load<uint32_t>(head + 16 * j + 2 * t + 8);
            b[j][n][0] = exists ? low : 0;
            b[j][n][1] = exists ? high : 0;
          }
        }
      }
    }
  };

  // Where this lane's rows of the warp's score blocks are, from the start of a page.
  struct ScoreRows {
    static constexpr int kLoads = Shape::kE4m3 ? (kBlocks + 1) / 2 : kBlocks;
    int byte[kLoads];

    GPU_DEVICE ScoreRows() {
      const GpuKvLayout layout = Shape::Layout();
      const int lane = threadIdx.x % 32, first = threadIdx.x / 32 % kParts * kBlocks;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if constexpr (Shape::kE4m3) {  // a block is a chunk: two blocks to a load
          const int block = min(2 * i + lane / 16, kBlocks - 1);
          byte[i] = layout.ChunkOffset(lane % 16, layout.ScoreBlock(first + block) / 16);
        } else {
          byte[i] = layout.ChunkOffset(lane % 16, layout.ScoreBlock(first + i) / 8 + lane / 16);
        }
      }
    }
  };

  static GPU_DEVICE void Score(const uint8_t* page, const ScoreRows& rows, const Query& q,
                               float4* to) {
    constexpr int kChains = kTiles == 1 ? 2 : 1;  // so that a product need not wait for the last
    float s[kTiles][kChains][4] = {};
    const auto multiply = [&](int j, const uint32_t(&a)[4]) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        gpu::MmaBf16(s[n][j % kChains], a, q.b[j][n][0], q.b[j][n][1]);
      }
    };
#pragma unroll
    for (int i = 0; i < ScoreRows::kLoads; ++i) {
      uint32_t a[4];
      gpu::Ldmatrix4(a, page + rows.byte[i]);
      if constexpr (Shape::kE4m3) {
        const uint32_t low[4] = {WidenEven(a[0]), WidenEven(a[1]), WidenOdd(a[0]), WidenOdd(a[1])};
        multiply(2 * i, low);
        if (2 * i + 1 < kBlocks) {
          const uint32_t high[4] = {WidenEven(a[2]), WidenEven(a[3]), WidenOdd(a[2]),
                                    WidenOdd(a[3])};
          multiply(2 * i + 1, high);
        }
      } else {
        multiply(i, a);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float sum[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = s[n][0][i] + (kChains == 2 ? s[n][kChains - 1][i] : 0);
      gpu::Store(to + n * 32, make_float4(sum[0], sum[1], sum[2], sum[3]));
    }
  }

  // Parts of all warps, [warp][tile][lane].
  static GPU_DEVICE void SumParts(const float4* parts, Scores& s) {
#pragma unroll
    for (int page = 0; page < kStepPages; ++page) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const float4 v = gpu::Load<float4>(parts + ((page * kParts + part) * kTiles + n) * 32);
          if (part == 0) {
            s[page][n][0] = v.x, s[page][n][1] = v.y, s[page][n][2] = v.z, s[page][n][3] = v.w;
          } else {
            s[page][n][0] += v.x, s[page][n][1] += v.y, s[page][n][2] += v.z, s[page][n][3] += v.w;
          }
        }
      }
    }
  }

  // Online softmax, the same in every warp; and the warp's columns of the weighted sum.
  struct Sums {
    float largest[kTiles][2];  // heads 2 t and 2 t + 1 of each tile, times log2 e
    float total[kTiles][2];    // of this lane's tokens
    float o[kValueBlocks][kTiles][4];

    GPU_DEVICE Sums() {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        largest[n][0] = largest[n][1] = -INFINITY;
        total[n][0] = total[n][1] = 0;
#pragma unroll
        for (int i = 0; i < kValueBlocks; ++i) {
          o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0;
        }
      }
    }

    // Scores become weights; earlier sums are rescaled. `position` of the step's first token.
    GPU_DEVICE void Weigh(Scores& s, const uint8_t* stage, int position, int begin, int end) {
      const int g = threadIdx.x % 32 / 4;
#pragma unroll
      for (int page = 0; page < kStepPages; ++page) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int token = g + 8 * row, at = position + page * kPageTokens + token;
          const bool seen = at >= begin && at < end;
          float factor = kLog2E;
          if constexpr (Shape::kE4m3) factor *= KeyScale(stage, page, token);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float& score = s[page][n][2 * row + h];
              score = seen ? score * factor : -INFINITY;
            }
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float most = largest[n][h];
#pragma unroll
          for (int page = 0; page < kStepPages; ++page) {
            most = fmaxf(most, fmaxf(s[page][n][h], s[page][n][2 + h]));
          }
#pragma unroll
          for (int d = 4; d < 32; d *= 2) {
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
          }
          const float shrink = gpu::Exp2Approx(largest[n][h] - most);
          largest[n][h] = most;
          total[n][h] *= shrink;
#pragma unroll
          for (int page = 0; page < kStepPages; ++page) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
              float& weight = s[page][n][2 * row + h];
              weight = gpu::Exp2Approx(weight - most);
              total[n][h] += weight;
            }
          }
#pragma unroll
          for (int i = 0; i < kValueBlocks; ++i) {
            o[i][n][h] *= shrink;
            o[i][n][2 + h] *= shrink;
          }
        }
      }
    }

    GPU_DEVICE void AddValues(const Scores& s, const uint8_t* stage) {
      const int lane = threadIdx.x % 32, g = lane / 4, warp = threadIdx.x / 32;
#pragma unroll
      for (int page = 0; page < kStepPages; ++page) {
        const uint8_t* tile = stage + page * Shape::kHeadBytes;
        uint32_t b[kTiles][2];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            float w0 = s[page][n][2 * row], w1 = s[page][n][2 * row + 1];
            if constexpr (Shape::kE4m3) {
              // A token that is not seen has weight 0, and a scale that may be anything.
              const float scale = ValueScale(stage, page, g + 8 * row);
              w0 = w0 > 0 ? w0 * scale : w0;
              w1 = w1 > 0 ? w1 * scale : w1;
            }
            b[n][row] = gpu::Movmatrix(gpu::PackBf16(w0, w1));
          }
        }
        const auto add = [&](int i, const uint32_t(&a)[4]) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) gpu::MmaBf16(o[i][n], a, b[n][0], b[n][1]);
        };
        if constexpr (Shape::kE4m3) {
          constexpr int kRowBytes = Shape::kRowBytes;
#pragma unroll
          for (int i = 0; i < kValueBlocks; i += 2) {
            const int chunk = warp * kValueBlocks + min(i + lane / 16, kValueBlocks - 1);
            uint32_t a[4];
            gpu::Ldmatrix4Trans(a, tile + SwizzledByte<kRowBytes>(lane % 16, chunk));
            const uint32_t low[4] = {WidenEven(a[0]), WidenOdd(a[0]), WidenEven(a[1]),
                                     WidenOdd(a[1])};
            add(i, low);
            if (i + 1 < kValueBlocks) {
              const uint32_t high[4] = {WidenEven(a[2]), WidenOdd(a[2]), WidenEven(a[3]),
                                        WidenOdd(a[3])};
              add(i + 1, high);
            }
          }
        } else {
          constexpr int kRowBytes = Shape::kRowBytes;
          const int token = lane % 8 + lane / 16 * 8, second = lane / 8 % 2;
#pragma unroll
          for (int i = 0; i < kValueBlocks; ++i) {
            uint32_t a[4];
            gpu::Ldmatrix4Trans(
                a, tile + SwizzledByte<kRowBytes>(token, 2 * (warp * kValueBlocks + i) + second));
            add(i, a);
          }
        }
      }
    }

    static GPU_DEVICE float KeyScale(const uint8_t* stage, int page, int token) {
      return gpu::Load<float>(stage + page * Shape::kHeadBytes + Shape::kTileBytes + 4 * token);
    }
    static GPU_DEVICE float ValueScale(const uint8_t* stage, int page, int token) {
      return KeyScale(stage, page, kPageTokens + token);
    }
  };

  // A place of the outputs in shared memory, [heads][head_dim] fp32, swizzled against conflicts.
  static GPU_DEVICE int OutputPlace(int head, int column) {
    return head * Shape::kHeadDim + (column ^ (head / 2 % 4 << 3));
  }

  // Outputs through shared memory, so that rows are written whole. One thread of each lane group
  // knows the maximum; sums are of a lane's tokens.
  static GPU_DEVICE void Finish(const DecodeParams& p, int row, int token, Sums& sums, float* out,
                                float2* stats) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    const int first_head = p.attention.group_begin[blockIdx.y];
    const int group = p.attention.group_begin[blockIdx.y + 1] - first_head;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float total = sums.total[n][h];
#pragma unroll
        for (int d = 4; d < 32; d *= 2) total += __shfl_xor_sync(0xffffffffu, total, d);
        const int head = 8 * n + 2 * t + h;
        if (warp == 0 && g == 0) gpu::Store(stats + head, make_float2(sums.largest[n][h], total));
#pragma unroll
        for (int i = 0; i < kValueBlocks; ++i) {
          const int first = 16 * (warp * kValueBlocks + i);
          const float o0 = sums.o[i][n][h], o1 = sums.o[i][n][2 + h];
          if constexpr (Shape::kE4m3) {
            gpu::Store(out + OutputPlace(head, first + 2 * g), make_float2(o0, o1));
          } else {
            gpu::Store(out + OutputPlace(head, first + g), o0);
            gpu::Store(out + OutputPlace(head, first + g + 8), o1);
          }
        }
      }
    }
    __syncthreads();
    const int split = blockIdx.z;
    const int64_t first_row = int64_t{row} * p.attention.q_heads + first_head;
    if (p.splits > 1 && static_cast<int>(threadIdx.x) < group) {
      gpu::Store(p.stats + (first_row + threadIdx.x) * p.splits + split,
                 gpu::Load<float2>(stats + threadIdx.x));
    }
    for (int i = threadIdx.x * 4; i < group * Shape::kHeadDim; i += kDecodeThreads * 4) {
      const int head = i / Shape::kHeadDim, column = i % Shape::kHeadDim;
      const float4 o = gpu::Load<float4>(out + OutputPlace(head, column));
      if (p.splits > 1) {
        gpu::Store(p.partial + ((first_row + head) * p.splits + split) * Shape::kHeadDim + column,
                   o);
      } else {
        const float inverse = 1.0f / gpu::Load<float2>(stats + head).y;
        gpu::Store(p.attention.out + token * p.attention.out_stride +
                       int64_t{first_head + head} * Shape::kHeadDim + column,
                   make_uint2(gpu::PackBf16(o.x * inverse, o.y * inverse),
                              gpu::PackBf16(o.z * inverse, o.w * inverse)));
      }
    }
  }
};

}  // namespace lapidary
