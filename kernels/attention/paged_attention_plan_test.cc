#include "kernels/attention/paged_attention_plan.h"

#include <vector>

#include "gtest/gtest.h"

namespace lapidary {
namespace {

std::vector<GpuKvLayout> Tuned() {
  std::vector<GpuKvLayout> layouts;
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    for (const int d : {64, 128, 256, 512}) layouts.push_back({type, KvFormat::kSplit, d, 0});
    layouts.push_back({type, KvFormat::kFolded, 128, 16});
    layouts.push_back({type, KvFormat::kFolded, 512, 64});
  }
  return layouts;
}

TEST(PagedAttentionPlanTest, TunedShapes) {
  for (const GpuKvLayout& layout : Tuned()) EXPECT_TRUE(IsTunedShape(layout));
  EXPECT_FALSE(IsTunedShape({GpuKvType::kBf16, KvFormat::kSplit, 96, 0}));
  EXPECT_FALSE(IsTunedShape({GpuKvType::kBf16, KvFormat::kSplit, 1024, 0}));
  EXPECT_FALSE(IsTunedShape({GpuKvType::kBf16, KvFormat::kFolded, 512, 32}));
  EXPECT_FALSE(IsTunedShape({GpuKvType::kBf16, KvFormat::kFolded, 256, 64}));
  EXPECT_FALSE(IsTunedShape({GpuKvType::kBf16, KvFormat::kSingle, 512, 64}));
}

TEST(PagedAttentionPlanTest, LargestGroup) {
  const int16_t group_begin[] = {0, 3, 3, 8, 9};
  EXPECT_EQ(LargestGroup(group_begin, 4), 5);
  EXPECT_EQ(LargestGroup(group_begin, 1), 3);
  EXPECT_EQ(LargestGroup(group_begin, 0), 0);
}

TEST(PagedAttentionPlanTest, SplitsShareAContextWithoutGapOrOverlap) {
  for (int pages = 1; pages <= 200; ++pages) {
    for (const int splits : {1, 2, 3, 5, 8, 31, kMaxDecodeSplits}) {
      const int share = PagesPerSplit(pages, splits);
      EXPECT_GE(int64_t{share} * splits, pages);
      // No split reads less than the minimum, but for the last one that reads at all.
      if (splits > 1) {
        EXPECT_GE(share, kMinPagesPerSplit);
      }
      if (splits > 1 && pages > splits * kMinPagesPerSplit) {
        EXPECT_LE((share - 1) * splits, pages) << "as even as whole pages allow";
      }
    }
  }
}

TEST(PagedAttentionPlanTest, SplitsFillTheChipOnce) {
  EXPECT_EQ(DecodeSplits(1, 0, 132), kMaxDecodeSplits);
  EXPECT_EQ(DecodeSplits(8, 0, 132), 33);
  EXPECT_EQ(DecodeSplits(256, 0, 132), 1);
  EXPECT_EQ(DecodeSplits(1 << 20, 0, 132), 1);
  EXPECT_EQ(DecodeSplits(0, 0, 132), 1);
  // A window of 1024 is 65 pages at most: 17 shares of 4.
  EXPECT_EQ(DecodeSplits(1, 1024, 132), 17);
  EXPECT_EQ(DecodeSplits(1, 1, 132), 1);
}

TEST(PagedAttentionPlanTest, DecodeFitsEveryChip) {
  for (const GpuKvLayout& layout : Tuned()) {
    EXPECT_LE(DecodeSharedBytes(layout, kMaxDecodeGroup), kSharedBytes89);
    EXPECT_LE(DecodeSharedBytes(layout, 1), DecodeSharedBytes(layout, kMaxDecodeGroup));
    EXPECT_GE(DecodeStages(layout), 2);
    const int pages = DecodeStepPages(layout);
    EXPECT_TRUE(pages == 1 || pages == 2 || pages == 4) << "four warps share a step's pages";
    // The outputs pass through the ring.
    EXPECT_GE(DecodeStages(layout) * pages * layout.tile_bytes(),
              kMaxDecodeGroup * layout.head_dim * 4);
    // Enough in flight: one block has at least a third of what any chip's processor needs.
    EXPECT_GE((DecodeStages(layout) - 1) * pages * layout.tile_bytes(), 24 << 10);
  }
}

TEST(PagedAttentionPlanTest, PrefillTilesFitAndCoverTheBlock) {
  for (const GpuKvLayout& layout : Tuned()) {
    for (const int shared : {kSharedBytes80, kSharedBytes89, kSharedBytes90}) {
      const PrefillTiles tiles = ChoosePrefillTiles(layout, shared);
      ASSERT_GE(tiles.rows, 32) << layout.head_dim;
      EXPECT_LE(PrefillSharedBytes(layout, tiles), shared);
      EXPECT_GE(tiles.stages, 2);
      const int row_tiles = tiles.rows / 16;
      EXPECT_EQ(tiles.warps % row_tiles, 0);
      EXPECT_LE(tiles.warps / row_tiles, 2) << "a named barrier joins two halves of the keys";
      // Outputs of a warp in registers: at most 128 of a thread's 255.
      EXPECT_LE(tiles.rows * layout.head_dim / (tiles.warps * 32), 128);
    }
  }
  EXPECT_EQ(ChoosePrefillTiles({GpuKvType::kBf16, KvFormat::kSplit, 256, 0}, 16 << 10),
            PrefillTiles{});
}

TEST(PagedAttentionPlanTest, TilesOfTheReleasedShapes) {
  const GpuKvLayout sliding{GpuKvType::kBf16, KvFormat::kSplit, 256, 0};
  EXPECT_EQ(ChoosePrefillTiles(sliding, kSharedBytes90), (PrefillTiles{128, 4, 2, 8}));
  EXPECT_EQ(ChoosePrefillTiles(sliding, kSharedBytes80), (PrefillTiles{128, 2, 2, 8}));
  EXPECT_EQ(ChoosePrefillTiles(sliding, kSharedBytes89), (PrefillTiles{64, 1, 3, 8}));
  const GpuKvLayout global{GpuKvType::kBf16, KvFormat::kFolded, 512, 64};
  EXPECT_EQ(ChoosePrefillTiles(global, kSharedBytes90), (PrefillTiles{64, 2, 2, 8}));
  EXPECT_EQ(ChoosePrefillTiles(global, kSharedBytes80), (PrefillTiles{64, 2, 2, 8}));
  EXPECT_EQ(ChoosePrefillTiles(global, kSharedBytes89), (PrefillTiles{32, 1, 3, 4}));
}

}  // namespace
}  // namespace lapidary
