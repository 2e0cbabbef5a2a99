// What the attention kernels decide on the host: how a context is cut, and which tiles fit a chip.
// Plain functions, tested without a device; those that a kernel needs too are marked.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/attention/gpu_kv_page.h"

namespace lapidary {

// The shapes that the tensor-core kernels are compiled for
// (kernels/attention/internal/page_ring.h).
constexpr bool IsTunedShape(const GpuKvLayout& layout) {
  const int d = layout.head_dim;
  if (layout.format == KvFormat::kSplit) return d == 64 || d == 128 || d == 256 || d == 512;
  return layout.format == KvFormat::kFolded &&
         ((d == 128 && layout.rotated_pairs == 16) || (d == 512 && layout.rotated_pairs == 64));
}

// The most query heads that a kv head serves.
constexpr int LargestGroup(const int16_t* group_begin, int kv_heads) {
  int largest = 0;
  for (int h = 0; h < kv_heads; ++h)
    largest = std::max(largest, group_begin[h + 1] - group_begin[h]);
  return largest;
}

// -- Decode.

inline constexpr int kDecodeThreads = 128;
// Query heads of a kv head: in eights, the width of a product.
inline constexpr int kMaxDecodeGroup = 16;
inline constexpr int kMaxDecodeSplits = 64;
// A split that has anything to do reads so many pages (its partial result costs about one).
inline constexpr int kMinPagesPerSplit = 4;

// Pages that are worked on between two block barriers: about 16 KiB.
LAPIDARY_HOST_DEVICE constexpr int DecodeStepPages(const GpuKvLayout& layout) {
  return layout.tile_bytes() > 12 << 10 ? 1 : layout.tile_bytes() > 4 << 10 ? 2 : 4;
}
// Stages of the ring: 64 KiB, so that every chip holds one block, and those with 164 KiB and more
// two or three.
LAPIDARY_HOST_DEVICE constexpr int DecodeStages(const GpuKvLayout& layout) {
  const int stages = (64 << 10) / (DecodeStepPages(layout) * layout.tile_bytes());
  return stages < 2 ? 2 : stages > 6 ? 6 : stages;
}

// Dynamic shared memory: ring, its barriers, and the scores that warps exchange, twice.
LAPIDARY_HOST_DEVICE constexpr int DecodeSharedBytes(const GpuKvLayout& layout, int group) {
  const int tiles = group <= 8 ? 1 : 2;
  return DecodeStages(layout) * DecodeStepPages(layout) * layout.head_bytes() + 128 +
         2 * tiles * kDecodeThreads * 16;
}

// Pages of each split of a context of so many pages; the last ones may get fewer, or none.
LAPIDARY_HOST_DEVICE constexpr int PagesPerSplit(int pages, int splits) {
  const int even = (pages + splits - 1) / splits;
  return splits > 1 && even < kMinPagesPerSplit ? kMinPagesPerSplit : even;
}

// Splits for so many blocks per split on a chip: two blocks on every processor, and no more than a
// windowed layer has use for.
constexpr int DecodeSplits(int64_t blocks_per_split, int window, int processors) {
  if (blocks_per_split <= 0) return 1;
  int64_t most = kMaxDecodeSplits;
  if (window > 0) {
    const int64_t pages = (int64_t{window} + kPageTokens - 2) / kPageTokens + 1;
    most = std::min(most, (pages + kMinPagesPerSplit - 1) / kMinPagesPerSplit);
  }
  return static_cast<int>(std::clamp<int64_t>(2 * int64_t{processors} / blocks_per_split, 1, most));
}

// -- Prefill.

// A block holds `rows` queries (tokens times the heads of a group) and goes through the keys in
// steps of `pages` pages, `stages` of them in shared memory.
struct PrefillTiles {
  int rows = 0, pages = 0, stages = 0, warps = 0;

  constexpr bool operator==(const PrefillTiles&) const = default;
};

// Dynamic shared memory of the kernel: queries, ring, the step in bf16 (e4m3 pages), softmax
// weights, and per row a factor and two numbers to exchange.
LAPIDARY_HOST_DEVICE constexpr int PrefillSharedBytes(const GpuKvLayout& layout,
                                                      const PrefillTiles& tiles) {
  const GpuKvLayout wide{GpuKvType::kBf16, layout.format, layout.head_dim, layout.rotated_pairs};
  const int queries = tiles.rows * layout.score_columns() * 2;
  const int ring = tiles.stages * tiles.pages * layout.head_bytes();
  const int widened = layout.type == GpuKvType::kBf16 ? 0 : tiles.pages * wide.tile_bytes();
  const int weights = tiles.rows * tiles.pages * kPageTokens * 2;
  return queries + ring + widened + weights + tiles.rows * 3 * 4 + 128;
}

// The first that fits of a list, best first: many rows to a page read, then long steps.
LAPIDARY_HOST_DEVICE constexpr PrefillTiles ChoosePrefillTiles(const GpuKvLayout& layout,
                                                               int shared_bytes) {
  constexpr PrefillTiles kSmallHeads[] = {
      {128, 4, 2, 8}, {128, 2, 2, 8}, {64, 2, 2, 8}, {64, 1, 3, 8}};
  constexpr PrefillTiles kLargeHeads[] = {
      {64, 4, 2, 8}, {64, 2, 2, 8}, {64, 1, 2, 8}, {32, 1, 3, 4}, {32, 1, 2, 4}};
  if (layout.head_dim <= 256) {
    for (const PrefillTiles& tiles : kSmallHeads) {
      if (PrefillSharedBytes(layout, tiles) <= shared_bytes) return tiles;
    }
  } else {
    for (const PrefillTiles& tiles : kLargeHeads) {
      if (PrefillSharedBytes(layout, tiles) <= shared_bytes) return tiles;
    }
  }
  return {};
}

// What blocks may ask for on the chips that the kernels are compiled for.
inline constexpr int kSharedBytes80 = 163 << 10;  // A100
inline constexpr int kSharedBytes89 = 99 << 10;   // L40S, RTX 4090; sm_120
inline constexpr int kSharedBytes90 = 227 << 10;  // H100, B200

}  // namespace lapidary
