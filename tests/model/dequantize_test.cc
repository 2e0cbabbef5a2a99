// The block formats against the `gguf` package's dequantize, bit for bit (tests/golden/quant, made
// by tests/golden/make_quant_blocks.py). No tolerance: fp16 times a small integer is exact in fp32,
// and the K formats round scale, product and difference one by one, as the recorded values did.
#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/base/half.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

struct Recorded {
  std::string bytes;
  const uint8_t* blocks = nullptr;
  std::vector<float> values;
};

Recorded Load(DType dtype) {
  Recorded recorded;
  recorded.bytes = ReadBytes(std::string("tests/golden/quant/") + Info(dtype).name + ".bin");
  int32_t elements = 0;
  if (recorded.bytes.size() < 4) return recorded;
  std::memcpy(&elements, recorded.bytes.data(), 4);
  const size_t block_bytes =
      static_cast<size_t>(elements / Info(dtype).block_elements) * Info(dtype).block_bytes;
  recorded.blocks = reinterpret_cast<const uint8_t*>(recorded.bytes.data()) + 4;
  recorded.values.resize(static_cast<size_t>(elements));
  if (recorded.bytes.size() == 4 + block_bytes + recorded.values.size() * 4) {
    std::memcpy(recorded.values.data(), recorded.blocks + block_bytes, recorded.values.size() * 4);
  } else {
    recorded.values.clear();
  }
  return recorded;
}

// The first element whose bits differ, -1 for none. -0 and 0 are different here.
int64_t FirstDifference(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return i;
  }
  return -1;
}

class BlockFormat : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(All, BlockFormat,
                         testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kQ4K,
                                         DType::kQ5K, DType::kQ6K),
                         [](const auto& info) { return std::string(Info(info.param).name); });

TEST_P(BlockFormat, EqualsTheReferenceBitForBit) {
  const Recorded recorded = Load(GetParam());
  const int64_t count = std::ssize(recorded.values);
  ASSERT_EQ(count, 2048);
  std::vector<float> out(static_cast<size_t>(count));
  Dequantize(GetParam(), recorded.blocks, 0, count, out.data());
  const int64_t at = FirstDifference(out.data(), recorded.values.data(), count);
  EXPECT_EQ(at, -1) << out[at] << " for " << recorded.values[at];
}

TEST_P(BlockFormat, AnyRangeOfBlocksEqualsThatPartOfTheWhole) {
  const Recorded recorded = Load(GetParam());
  ASSERT_EQ(recorded.values.size(), 2048u);
  const std::vector<std::pair<int, int>> ranges = {{32, 64},   {0, 32},      {224, 544},
                                                   {256, 512}, {2016, 2048}, {64, 64}};
  for (const auto& [begin, end] : ranges) {
    std::vector<float> out(static_cast<size_t>(end - begin) + 1, 77.0f);
    Dequantize(GetParam(), recorded.blocks, begin, end, out.data());
    EXPECT_EQ(FirstDifference(out.data(), recorded.values.data() + begin, end - begin), -1)
        << begin << " to " << end;
    EXPECT_EQ(out.back(), 77.0f) << "wrote past the range";
  }
}

int ZeroPoint(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kQ6K:
      return 128;
    case DType::kQ4_0:
      return 8;
    case DType::kQ5_0:
      return 16;
    default:
      return 0;
  }
}

TEST_P(BlockFormat, CodesScalesAndMinsGiveTheSameValues) {
  const DType dtype = GetParam();
  const Recorded recorded = Load(dtype);
  ASSERT_EQ(recorded.values.size(), 2048u);
  const int block = dtype == DType::kQ6K ? 16 : 32;
  for (const int64_t begin : {0, 96, 1024}) {
    const int64_t count = 2048 - begin;
    std::vector<uint8_t> codes(static_cast<size_t>(count));
    std::vector<float> scales(static_cast<size_t>(count / block)), mins(scales.size());
    DecodeBlocks(dtype, recorded.blocks, begin, 2048, codes.data(), scales.data(), mins.data());
    for (int64_t i = 0; i < count; ++i) {
      // Volatile: the product must be rounded before the difference, as in the reference.
      volatile float product = scales[i / block] * static_cast<float>(codes[i] - ZeroPoint(dtype));
      const float value = product - mins[i / block];
      ASSERT_EQ(value, recorded.values[begin + i]) << "element " << begin + i;
    }
  }
}

TEST(Dequantize, FloatsOfAnyAlignment) {
  const std::vector<float> values = {0.0f, -1.5f, 65504.0f, 0x1p-24f, -0x1.8p-16f};
  std::string f32(1, 'x'), f16(1, 'x'), bf16(1, 'x');  // one byte: everything after is misaligned
  for (const float value : values) {
    const uint16_t half = ToFp16(value), brain = ToBf16(value);
    f32.append(reinterpret_cast<const char*>(&value), 4);
    f16.append(reinterpret_cast<const char*>(&half), 2);
    bf16.append(reinterpret_cast<const char*>(&brain), 2);
  }
  const auto data = [](const std::string& s) {
    return reinterpret_cast<const uint8_t*>(s.data()) + 1;
  };
  std::vector<float> out(5);
  Dequantize(DType::kF32, data(f32), 0, 5, out.data());
  EXPECT_EQ(out, values);
  Dequantize(DType::kF16, data(f16), 0, 5, out.data());
  EXPECT_EQ(out, values);
  Dequantize(DType::kBf16, data(bf16), 0, 5, out.data());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(out[i], RoundToBf16(values[i]));
  Dequantize(DType::kF16, data(f16), 2, 4, out.data());
  EXPECT_EQ(out[0], values[2]);
  EXPECT_EQ(out[1], values[3]);
}

}  // namespace
}  // namespace lapidary
