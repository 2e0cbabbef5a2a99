// Packing and unpacking for every format and odd sizes: a row comes back exactly.
#include "kernels/gemm/packed_weight.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/gemm/matmul_test_support.h"

namespace lapidary {
namespace {

class PackedWeightTest : public testing::TestWithParam<WeightFormat> {};

TEST_P(PackedWeightTest, RowsComeBack) {
  for (int64_t n : {1, 31, 32, 33, 100}) {
    for (int64_t k : {1, 12, 31, 32, 33, 100, 640}) {
      const TestWeight w = MakeWeight(GetParam(), n, k, 17);
      for (int64_t c = 0; c < n; ++c) {
        std::vector<float> row(k + 1, -7.0f);
        UnpackRow(w.packed, c, row.data());
        for (int64_t i = 0; i < k; ++i) {
          ASSERT_EQ(row[i], w.values[c * k + i])
              << "n " << n << " k " << k << " row " << c << " at " << i;
        }
        ASSERT_EQ(row[k], -7.0f) << "written past the row";
      }
    }
  }
}

TEST_P(PackedWeightTest, AnotherRowReplacesARow) {
  const TestWeight a = MakeWeight(GetParam(), 33, 100, 1);
  TestWeight b = MakeWeight(GetParam(), 33, 100, 2);
  // Pack b's rows over a copy of a's panel: nothing of a may remain.
  PackedWeight mixed(GetParam(), 33, 100);
  memcpy(mixed.data.data(), a.packed.data.data(), mixed.bytes());
  mixed.output_scale = b.packed.output_scale;
  if (!IsQuantized(GetParam())) {
    for (int64_t c = 0; c < 33; ++c) PackFloatRow(mixed, c, &b.values[c * 100]);
  } else {
    std::vector<uint8_t> codes(100, 1);
    std::vector<float> scales(mixed.blocks(), 1.0f), mins(mixed.blocks(), 2.0f);
    PackedWeight fresh(GetParam(), 33, 100);
    fresh.output_scale = mixed.output_scale = 1.0f;
    for (int64_t c = 0; c < 33; ++c) {
      PackQuantizedRow(mixed, c, codes.data(), scales.data(), mins.data());
      PackQuantizedRow(fresh, c, codes.data(), scales.data(), mins.data());
    }
    b.packed = std::move(fresh);
  }
  EXPECT_EQ(memcmp(mixed.data.data(), b.packed.data.data(), mixed.bytes()), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedWeightTest,
                         testing::Values(WeightFormat::kQ8, WeightFormat::kQ8Block16,
                                         WeightFormat::kQ4, WeightFormat::kQ4Min, WeightFormat::kQ5,
                                         WeightFormat::kQ5Min, WeightFormat::kBf16,
                                         WeightFormat::kFp32),
                         [](const auto& info) { return std::string(Info(info.param).name); });

TEST(HugeBuffer, ZeroedAlignedAndNullWhenImpossible) {
  for (size_t bytes : {size_t{1}, size_t{5000}, size_t{2} << 20, size_t{5} << 20}) {
    const HugeBuffer buffer(bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(buffer.data()[0], 0);
    EXPECT_EQ(buffer.data()[bytes - 1], 0);
  }
  EXPECT_EQ(HugeBuffer(size_t{1} << 62).data(), nullptr);
  EXPECT_EQ(HugeBuffer(0).data(), nullptr);
}

}  // namespace
}  // namespace lapidary
