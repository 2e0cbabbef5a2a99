// The closed forms of gpu_kv_page.h against definitions that a loop can spell out.
#include "kernels/attention/gpu_kv_page.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace lapidary {
namespace {

std::vector<GpuKvLayout> Layouts() {
  std::vector<GpuKvLayout> layouts;
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    for (int d = 2; d <= 160; d += 2) {
      layouts.push_back({type, KvFormat::kSplit, d, 0});
      for (int pairs = 0; pairs <= d / 2; ++pairs) {
        layouts.push_back({type, KvFormat::kFolded, d, pairs});
      }
    }
    for (const int d : {256, 512, 1024}) {
      layouts.push_back({type, KvFormat::kSplit, d, 0});
      for (const int pairs : {0, 1, 15, 16, 20, 64, d / 2}) {
        layouts.push_back({type, KvFormat::kFolded, d, pairs});
      }
    }
  }
  return layouts;
}

bool TurnsByDefinition(const GpuKvLayout& l, int c) {
  for (int i = 0; i < l.rotated_pairs; ++i) {
    if (c == i || c == i + l.head_dim / 2) return true;
  }
  return false;
}
// A block of v takes part in a score unless it lies inside one of the two runs that turn.
bool TakesPart(const GpuKvLayout& l, int block) {
  const int half = l.head_dim / 2, begin = 16 * block, end = begin + 16;
  const bool in_first = end <= l.rotated_pairs;
  const bool in_second = begin >= half && end <= half + l.rotated_pairs;
  return !in_first && !in_second;
}

TEST(GpuKvLayoutTest, ScoreBlocksAreThePlainOnesOfVAndThenTheKeys) {
  for (const GpuKvLayout& l : Layouts()) {
    std::vector<int> expected;
    if (l.format == KvFormat::kFolded) {
      for (int b = 0; 16 * b < l.head_dim; ++b) {
        if (TakesPart(l, b)) expected.push_back(16 * b);
      }
    }
    const int values = static_cast<int>(expected.size());
    for (int b = 0; b < l.key_blocks(); ++b) expected.push_back(l.value_columns() + 16 * b);
    ASSERT_EQ(l.value_blocks(), values) << l.head_dim << " " << l.rotated_pairs;
    ASSERT_EQ(l.score_blocks(), static_cast<int>(expected.size()));
    for (int i = 0; i < l.score_blocks(); ++i) ASSERT_EQ(l.ScoreBlock(i), expected[i]);
  }
}

TEST(GpuKvLayoutTest, AScoreMeetsEveryColumnOfAKeyOnce) {
  for (const GpuKvLayout& l : Layouts()) {
    std::set<int> places;
    for (int c = 0; c < l.head_dim; ++c) {
      const int signed_place = l.QueryPlace(c);
      const int place = signed_place < 0 ? -1 - signed_place : signed_place;
      ASSERT_LT(place, l.score_columns());
      ASSERT_TRUE(places.insert(place).second);
      ASSERT_EQ(l.QuerySource(place), c);
      // What stands in the page where the place points to.
      const int column = l.ScoreBlock(place / 16) + place % 16;
      if (l.format == KvFormat::kSplit) {
        ASSERT_EQ(column, l.value_columns() + c);
        ASSERT_GE(signed_place, 0);
      } else if (TurnsByDefinition(l, c)) {
        ASSERT_GE(signed_place, 0);
        ASSERT_EQ(column, l.KeyColumn(c));
      } else {
        ASSERT_LT(signed_place, 0);
        ASSERT_EQ(column, c) << "v in its own order";
        ASSERT_EQ(l.KeyColumn(c), -1);
      }
    }
    int zeros = 0;
    for (int place = 0; place < l.score_columns(); ++place) {
      if (places.count(place) == 0) {
        ASSERT_EQ(l.QuerySource(place), -1);
        ++zeros;
      }
    }
    ASSERT_EQ(l.QueryHasGaps(), zeros > 0) << l.head_dim << " " << l.rotated_pairs;
  }
}

TEST(GpuKvLayoutTest, KeyColumnsAndTheirSourcesAreInverse) {
  for (const GpuKvLayout& l : Layouts()) {
    std::set<int> used;
    for (int c = 0; c < l.head_dim; ++c) {
      ASSERT_EQ(l.format == KvFormat::kFolded && l.Turns(c), TurnsByDefinition(l, c));
      const int column = l.KeyColumn(c);
      if (column < 0) continue;
      ASSERT_GE(column, l.value_columns());
      ASSERT_LT(column, l.row_columns());
      ASSERT_EQ(l.KeySource(column - l.value_columns()), c);
      used.insert(column);
    }
    for (int column = 0; column < l.key_columns(); ++column) {
      if (used.count(l.value_columns() + column) == 0) {
        ASSERT_EQ(l.KeySource(column), -1);
      }
    }
  }
}

TEST(GpuKvLayoutTest, RowsAreWholeLinesAndChunksAreAPermutation) {
  for (const GpuKvLayout& l : Layouts()) {
    ASSERT_EQ(l.row_bytes() % 128, 0);
    ASSERT_EQ(l.head_bytes() % 128, 0);
    ASSERT_GE(l.value_columns(), l.head_dim);
    std::vector<bool> seen(l.tile_bytes() / 16);
    for (int token = 0; token < kPageTokens; ++token) {
      for (int chunk = 0; chunk < l.row_bytes() / 16; ++chunk) {
        const int at = l.ChunkOffset(token, chunk);
        ASSERT_EQ(at % 16, 0);
        ASSERT_EQ(at / l.row_bytes(), token);
        ASSERT_FALSE(seen[at / 16]);
        seen[at / 16] = true;
      }
    }
    // What ldmatrix reads at once, 8 rows of one chunk, lies in 8 different sixteenths of 128
    // bytes.
    for (int half = 0; half < 2; ++half) {
      std::set<int> banks;
      for (int r = 0; r < 8; ++r) banks.insert(l.ChunkOffset(8 * half + r, 3) / 16 % 8);
      ASSERT_EQ(banks.size(), 8u);
    }
  }
}

TEST(GpuKvLayoutTest, BytesOfTheReleasedShapes) {
  const GpuKvLayout sliding{GpuKvType::kBf16, KvFormat::kSplit, 256, 0};
  EXPECT_EQ(sliding.head_bytes(), 16 * 2 * 256 * 2);
  const GpuKvLayout global{GpuKvType::kBf16, KvFormat::kFolded, 512, 64};
  EXPECT_EQ(global.head_bytes(), 16 * 640 * 2);
  EXPECT_EQ(global.score_columns(), 512);
  EXPECT_EQ(global.value_blocks(), 24);
  const GpuKvLayout small{GpuKvType::kE4m3, KvFormat::kFolded, 512, 64};
  EXPECT_EQ(small.head_bytes(), 16 * 640 + 128);
}

}  // namespace
}  // namespace lapidary
