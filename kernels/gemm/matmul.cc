// The driver above the tile kernels.
//
// Up to a tile of rows: one pass, the panel streams from memory. More: equal chunks of K stay in L1
// while all rows pass over them and accumulators wait in a scratch. Above 64 rows four panels share
// one pass over a chunk of the activations (L2), 256 rows at a time.
//
// AMX (tile_amx.h) goes through the weights as they lie, up to 64 rows beside them; more rows come
// back to them while they are in L2.
#include "kernels/gemm/matmul.h"

#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"
#include "kernels/gemm/internal/activations.h"
#include "kernels/gemm/internal/matmul_plan.h"

namespace lapidary {

namespace {

constexpr int64_t kPrefetchAhead = 4096;               // bytes
constexpr int64_t kStreamingBytes = int64_t{1} << 20;  // a larger result leaves the caches anyway
constexpr int64_t kMinPartRows = 64;                   // a chunk read again costs less than these
constexpr int64_t kAmxFewRows = 11;                    // up to here vpdpbusd is as fast
constexpr int64_t kAmxGroupBytes = 512 << 10;          // of weights, in L2
constexpr int64_t kScratchFloats = kMaxGroup * kScratchRows * kPanelColumns;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Weights that stay in L1 beside the activations of a tile: 28 KB of 48. Over 30 KB loses 10 to 15
// % at 8 to 32 rows, under 5 KB the accumulators' traffic shows.
int64_t ChunkBytes() {
  static const int64_t bytes = [] {
    const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    return (l1 >= (16 << 10) ? l1 : 32 << 10) * 7 / 12;
  }();
  return bytes;
}

const TileSet& Tiles(Arithmetic arithmetic, WeightFormat format) {
  static const bool gfni = __builtin_cpu_supports("gfni");
  switch (arithmetic) {
    case Arithmetic::kInt8Amx:  // for few rows
    case Arithmetic::kInt8Vnni:
      return gfni && kVnniGfniTiles.widen[static_cast<int>(format)] != nullptr ? kVnniGfniTiles
                                                                               : kVnniTiles;
    case Arithmetic::kInt8Avx512:
      return kMaddAvx512Tiles;
    case Arithmetic::kInt8Avx2:
      return kMaddAvx2Tiles;
    case Arithmetic::kFmaAvx512:
      return kFmaAvx512Tiles;
    case Arithmetic::kFmaAvx2:
      return kFmaAvx2Tiles;
    case Arithmetic::kDotBf16:
      break;
  }
  return kDotBf16Tiles;
}

// Rows from which a chunk is widened once instead of in every tile.
int64_t WidenFrom(WeightFormat format) {
  return format == WeightFormat::kQ5 || format == WeightFormat::kQ5Min ? 16 : 64;
}

// One product as every thread sees it.
struct Job {
  const PackedWeight& w;
  const MatmulPlan& plan;
  int64_t row_stride;
  const uint8_t* x;     // the block-major rows
  int64_t x_row_bytes;  // of one row of one block
  const int32_t* start;
  const BlockScale* scale;
  float* y;
  int64_t y_stride;
  bool streaming;  // stores that spare reading y first
};

void StoreRow(const Job& job, const float* acc, int64_t row, int64_t panel) {
  float* y = job.y + row * job.y_stride + panel * kPanelColumns;
  const int64_t columns = std::min<int64_t>(kPanelColumns, job.w.n - panel * kPanelColumns);
  const float output_scale = job.w.output_scale;
  if (columns < kPanelColumns) {
    for (int64_t i = 0; i < columns; ++i) y[i] = acc[i] * output_scale;
    return;
  }
  for (int64_t i = 0; i < kPanelColumns; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_load_ps(acc + i), _mm256_set1_ps(output_scale));
    if (job.streaming) {
      _mm256_stream_ps(y + i, v);
    } else {
      _mm256_storeu_ps(y + i, v);
    }
  }
}

// The same part of the product with AMX: rows in passes of up to 64, in tiles of equal size.
void StreamGroup(const Job& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                 int64_t row_end, float* scratch) {
  const PackedWeight& w = job.w;
  int64_t row = row_begin, tiles_left = CeilDiv(row_end - row_begin, kAmxMostRows);
  for (int64_t passes = CeilDiv(tiles_left, kAmxMostTiles); passes > 0; --passes) {
    const int64_t tiles = CeilDiv(tiles_left, passes);
    const int64_t rows = std::min(tiles * kAmxMostRows, row_end - row);
    const int64_t tile_rows =
        std::max<int64_t>(kAmxLeastRows, CeilDiv(CeilDiv(rows, tiles), 2) * 2);
    struct Pass {
      const Job& job;
      const float* acc;
      int64_t panel_begin, panel_end, row, rows;
    } pass{job, scratch, panel_begin, panel_end, row, rows};
    const auto store = [](void* context, int64_t panel) {
      const Pass& p = *static_cast<const Pass*>(context);
      const int64_t first = p.panel_begin + panel;
      const int64_t panels = std::min<int64_t>(kAmxPanels, p.panel_end - first);
      for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t i = 0; i < panels; ++i) {
          StoreRow(p.job, p.acc + (r * kAmxPanels + i) * kPanelColumns, p.row + r, first + i);
        }
      }
    };
    job.plan.amx[(tile_rows - kAmxLeastRows) / 2](
        {.w = w.data.data() + panel_begin * w.panel_bytes(),
         .x = reinterpret_cast<const int8_t*>(job.x) + row * job.x_row_bytes,
         .scale = job.scale + row,
         .x_stride = job.row_stride * job.x_row_bytes,
         .row_stride = job.row_stride,
         .blocks = w.blocks(),
         .panels = panel_end - panel_begin,
         .tiles = static_cast<int>(tiles),
         .acc = scratch,
         .done = store,
         .context = &pass});
    row += rows;
    tiles_left -= tiles;
  }
}

// Rows [row_begin, row_end) of panels [panel_begin, panel_end), the latter at most group_panels.
void RunGroup(const Job& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
              int64_t row_end, float* scratch) {
  const PackedWeight& w = job.w;
  const MatmulPlan& plan = job.plan;
  const WeightFormatInfo& info = Info(w.format);
  auto* widened = reinterpret_cast<uint8_t*>(scratch + kScratchFloats);
  const int64_t rows = row_end - row_begin;
  const int64_t passes = CeilDiv(rows, plan.max_rows);
  const bool stream = passes == 1 && plan.widen == nullptr;
  for (int64_t b = 0; b < w.blocks(); b += plan.chunk_blocks) {
    const int64_t blocks = std::min(plan.chunk_blocks, w.blocks() - b);
    for (int64_t p = panel_begin; p < panel_end; ++p) {
      const uint8_t* chunk = w.data.data() + p * w.panel_bytes() + b * info.block_bytes;
      const int64_t chunk_bytes = blocks * info.block_bytes;
      const uint8_t* next = plan.group_panels > 1 ? chunk + w.panel_bytes() : chunk + chunk_bytes;
      TileArgs args;
      args.w = chunk;
      if (plan.widen != nullptr) {
        plan.widen(chunk, blocks, widened);
        args.w = widened;
      }
      args.x_stride = job.row_stride * job.x_row_bytes;
      args.row_stride = job.row_stride;
      args.blocks = blocks;
      args.start_at_zero = b == 0;
      // One pass: a fixed distance ahead in the same stream. More: the next chunk, spread evenly
      // over the passes over this one, so that memory never rests.
      args.prefetch = stream ? chunk + kPrefetchAhead : next;
      const uint8_t* prefetch_end = args.prefetch + chunk_bytes;
      float* acc = scratch + (p - panel_begin) * kScratchRows * kPanelColumns;
      int64_t m = row_begin;
      for (int64_t i = 0; i < passes; ++i) {  // balanced: 16 rows are 6 + 5 + 5
        const int64_t tile_rows = rows / passes + (i < rows % passes ? 1 : 0);
        args.x = job.x + b * args.x_stride + m * job.x_row_bytes;
        args.start = job.start == nullptr ? nullptr : job.start + b * job.row_stride + m;
        args.scale = job.scale == nullptr ? nullptr : job.scale + b * job.row_stride + m;
        args.acc = acc + (m - row_begin) * kPanelColumns;
        args.prefetch_lines = 0;
        if (args.prefetch < prefetch_end) {
          args.prefetch_lines = static_cast<int>(CeilDiv(info.block_bytes / 64, passes));
        }
        plan.tiles[stream][tile_rows - 1](args);
        args.prefetch += blocks * args.prefetch_lines * 64;
        m += tile_rows;
      }
    }
  }
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const float* acc = scratch + (p - panel_begin) * kScratchRows * kPanelColumns;
    for (int64_t m = row_begin; m < row_end; ++m, acc += kPanelColumns) StoreRow(job, acc, m, p);
  }
}

}  // namespace

int64_t RowParts(int64_t panels, int64_t rows, int threads) {
  if (threads == 1 || rows < 2 * kMinPartRows || panels >= 4 * int64_t{threads}) return 1;
  return std::min(rows / kMinPartRows, CeilDiv(4 * int64_t{threads}, panels));
}

MatmulPlan PlanMatmul(const PackedWeight& w, int64_t rows, Arithmetic arithmetic) {
  const int format = static_cast<int>(w.format);
  const TileSet& set = Tiles(arithmetic, w.format);
  MatmulPlan plan;
  if (arithmetic == Arithmetic::kInt8Amx && rows > kAmxFewRows &&
      kAmxKernels[format][0] != nullptr) {
    plan.amx = kAmxKernels[format];
    plan.unit_panels = kAmxPanels;
    const int64_t pairs = kAmxGroupBytes / (kAmxPanels * w.panel_bytes());
    plan.group_panels = rows <= kAmxMostTiles * kAmxMostRows
                            ? w.panels() + kAmxPanels
                            : kAmxPanels * std::max<int64_t>(1, pairs);
    return plan;
  }
  plan.tiles = set.tile[format];
  plan.max_rows = set.max_rows;
  plan.tile_block_bytes = Info(w.format).block_bytes;
  // Codes are widened on the fly while memory is the limit, once per chunk when arithmetic is.
  if (set.widen[format] != nullptr && rows >= WidenFrom(w.format)) {
    plan.widen = set.widen[format];
    const bool min = Info(w.format).has_min;
    plan.tiles = kVnniTiles.tile[min ? kWidenedMin : static_cast<int>(WeightFormat::kQ8)];
    plan.tile_block_bytes = min ? kWidenedMinBytes : Info(WeightFormat::kQ8).block_bytes;
  }
  // One pass: the whole panel. More: equal chunks (18 + 18 + 12 blocks cost 7 % at 16 rows).
  plan.chunk_blocks = w.blocks();
  if (rows > plan.max_rows || plan.widen != nullptr) {
    const int64_t chunks = CeilDiv(w.blocks() * plan.tile_block_bytes, ChunkBytes());
    plan.chunk_blocks = CeilDiv(w.blocks(), chunks);
  }
  plan.group_panels = rows > 64 ? kMaxGroup : 1;
  return plan;
}

void Matmul(ThreadTeam& team, const PackedWeight& w, const ActivationRows& activations, float* y,
            int64_t y_stride) {
  const ActivationRows::Impl& x = activations.impl();
  LAPIDARY_CHECK(x.k == w.k && Fits(x.arithmetic, w.format));
  if (x.rows == 0 || w.n == 0) return;
  const MatmulPlan plan = PlanMatmul(w, x.rows, x.arithmetic);
  LAPIDARY_CHECK(plan.amx != nullptr ? plan.amx[0] != nullptr : plan.tiles[0][0] != nullptr);
  const WeightFormatInfo& info = Info(w.format);
  Job job{.w = w,
          .plan = plan,
          .row_stride = x.row_stride,
          .x = x.floats.data(),
          .y = y,
          .y_stride = y_stride};
  if (IsInt8(x.arithmetic)) {
    const Int8Rows& rows = info.block_k == 16 ? x.by16 : x.by32;
    LAPIDARY_CHECK(rows.set);
    job.x = rows.x.data();
    job.x_row_bytes = info.block_k;
    job.start = rows.start(info.zero_point);  // not read by the widened tiles
    job.scale = reinterpret_cast<const BlockScale*>(rows.scales.data());
  } else {
    job.x_row_bytes = kBlockK * (x.arithmetic == Arithmetic::kDotBf16 ? 2 : 4);
  }
  job.streaming = x.rows * w.n * 4 > kStreamingBytes &&
                  (reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>(y_stride * 4)) % 32 == 0;
  const int64_t widened_bytes =
      plan.widen == nullptr ? 0 : plan.chunk_blocks * plan.tile_block_bytes;

  // A thread takes a contiguous run of units: of one part of the rows, then of the next.
  const int64_t units = CeilDiv(w.panels(), plan.unit_panels);
  const int64_t parts = RowParts(units, x.rows, team.size());
  team.Run([&](int thread) {
    const int64_t begin = ThreadTeam::Begin(units * parts, thread, team.size());
    const int64_t end = ThreadTeam::Begin(units * parts, thread + 1, team.size());
    if (begin == end) return;
    auto* scratch = reinterpret_cast<float*>(
        ThreadTeam::Scratch(kScratchFloats * sizeof(float) + widened_bytes));
    for (int64_t i = begin; i < end;) {
      const int64_t part = i / units, unit = i % units;
      const int64_t count = std::min({plan.group_panels / plan.unit_panels, units - unit, end - i});
      const int64_t p = unit * plan.unit_panels;
      const int64_t last = std::min(p + count * plan.unit_panels, w.panels());
      const int64_t row_begin = x.rows * part / parts, row_end = x.rows * (part + 1) / parts;
      if (plan.amx != nullptr) {
        StreamGroup(job, p, last, row_begin, row_end, scratch);
      } else {
        for (int64_t m = row_begin; m < row_end; m += kScratchRows) {
          RunGroup(job, p, last, m, std::min(m + kScratchRows, row_end), scratch);
        }
      }
      i += count;
    }
    // Streaming stores are ordered by nothing else, not even by the barrier.
    if (job.streaming) _mm_sfence();
  });
}

}  // namespace lapidary
