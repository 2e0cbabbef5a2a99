// A packed matrix against its stored form: the same numbers, from any slice, in every format.
#include "worker/cpu_backend_matrix.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "common/base/half.h"
#include "gtest/gtest.h"
#include "tests/worker/quantized_blocks.h"

namespace lapidary {
namespace {

constexpr DType kQuantized[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0,
                                DType::kQ4K,  DType::kQ5K,  DType::kQ6K};

struct Stored {
  StoredTensor tensor;
  std::vector<uint8_t> bytes;
  std::vector<float> values;  // [rows, inner], exact
};

Stored Make(DType dtype, int64_t rows, int64_t inner, uint32_t seed, float scale = 0.02f) {
  Stored s;
  if (IsQuantized(dtype)) {
    s.bytes = RandomBlocks(dtype, rows, inner, scale, seed);
  } else {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * inner; ++i) {
      const float v = normal(rng) * scale;
      const uint16_t half = dtype == DType::kF16 ? ToFp16(v) : ToBf16(v);
      const auto* p = reinterpret_cast<const uint8_t*>(
          dtype == DType::kF32 ? static_cast<const void*>(&v) : static_cast<const void*>(&half));
      s.bytes.insert(s.bytes.end(), p, p + (dtype == DType::kF32 ? 4 : 2));
    }
  }
  s.tensor.name = Info(dtype).name;
  s.tensor.dtype = dtype;
  s.tensor.shape = {rows, inner};
  s.tensor.data = s.bytes.data();
  s.tensor.bytes = static_cast<int64_t>(s.bytes.size());
  s.values.resize(rows * inner);
  for (int64_t r = 0; r < rows; ++r) {
    Dequantize(dtype, s.bytes.data() + r * (s.tensor.bytes / rows), 0, inner,
               s.values.data() + r * inner);
  }
  return s;
}

class CpuMatrixTest : public testing::Test {
 protected:
  CpuMatrix Pack(const MatrixSource& source, ComputeType compute) {
    auto matrix = CpuMatrix::Pack(source, compute, *team_, MappedRanges());
    EXPECT_TRUE(matrix.ok()) << matrix.status();
    EXPECT_EQ(matrix->bytes(), CpuMatrixBytes(source, compute));
    return *std::move(matrix);
  }
  std::vector<float> Input(int64_t rows, int64_t k) {
    std::mt19937 rng(9);
    std::normal_distribution<float> normal;
    std::vector<float> x(rows * k);
    for (float& v : x) v = normal(rng);
    return x;
  }
  // Relative rms error of the product against double.
  double ProductError(const CpuMatrix& matrix, const std::vector<std::vector<float>>& w,
                      CpuArithmetic arithmetic) {
    constexpr int64_t kRows = 5;
    const int64_t n = matrix.outputs(), k = matrix.inputs();
    const std::vector<float> x = Input(kRows, k);
    std::vector<float> y(kRows * (n + 3), 5.0f);
    CpuRows rows(*team_, arithmetic);
    rows.Set(x.data(), kRows, k, k);
    matrix.Multiply(*team_, rows, y.data(), n + 3);
    double squares = 0, reference = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t o = 0; o < n; ++o) {
        double expected = 0;
        for (int64_t i = 0; i < k; ++i) expected += double{x[r * k + i]} * w[o][i];
        squares += std::pow(y[r * (n + 3) + o] - expected, 2);
        reference += expected * expected;
      }
      EXPECT_EQ(y[r * (n + 3) + n], 5.0f);
    }
    return std::sqrt(squares / reference);
  }

  std::unique_ptr<ThreadTeam> team_ = ThreadTeam::Create(2, {});
};

CpuArithmetic Best(bool round) { return {BestInt8(), BestFma(), BestFma(), round}; }

std::vector<std::vector<float>> Rows(const Stored& s, Range rows, Range columns) {
  std::vector<std::vector<float>> out;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const float* at = s.values.data() + r * s.tensor.inner();
    out.emplace_back(at + columns.begin, at + columns.end);
  }
  return out;
}

TEST_F(CpuMatrixTest, HoldsTheStoredNumbers) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16, DType::kQ8_0, DType::kQ4_0,
                            DType::kQ5_0, DType::kQ4K, DType::kQ5K, DType::kQ6K}) {
    const Stored s = Make(dtype, 70, 512, 3);
    // The whole, and a slice whose columns start and end inside a block of 256.
    for (const auto& [rows, columns] :
         {std::pair<Range, Range>{{0, 70}, {0, 512}}, {{5, 44}, {96, 352}}}) {
      const auto expected = Rows(s, rows, columns);
      const MatrixSource source{"m", {{&s.tensor, rows, columns}}};
      for (const ComputeType compute :
           {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8}) {
        SCOPED_TRACE(std::string(Info(dtype).name) + " compute " +
                     std::to_string(static_cast<int>(compute)));
        const CpuMatrix m = Pack(source, compute);
        std::vector<float> row(columns.size());
        // fp32 holds everything; bf16 rounds to 8 bits; int8 keeps the codes, and the K formats'
        // scales and mins (products of two) round to fp16, 2^-12 of the largest value each.
        const bool exact =
            compute == ComputeType::kFp32 ||
            (compute == ComputeType::kBf16 && dtype == DType::kBf16) ||
            (compute == ComputeType::kInt8 && (dtype == DType::kBf16 || dtype == DType::kQ8_0 ||
                                               dtype == DType::kQ4_0 || dtype == DType::kQ5_0));
        float largest = 0;
        for (const auto& r : expected) {
          for (const float v : r) largest = std::max(largest, std::fabs(v));
        }
        for (size_t r = 0; r < expected.size(); ++r) {
          m.Unpack(static_cast<int64_t>(r), row.data());
          for (size_t i = 0; i < row.size(); ++i) {
            const float e = expected[r][i];
            const bool codes = compute == ComputeType::kInt8 && IsQuantized(dtype);
            const double tolerance = exact ? 0 : codes ? largest * 0x1p-10 : std::fabs(e) * 0x1p-8;
            ASSERT_NEAR(row[i], e, tolerance) << r << " " << i;
          }
        }
      }
    }
  }
}

TEST_F(CpuMatrixTest, MultipliesPartsOfDifferentFormats) {
  // What a Q4_K_M file does to a merged matrix: every part its own type, all 1 + 2 + ... rows odd.
  std::vector<Stored> stored;
  MatrixSource source{"merged", {}};
  int64_t rows = 33;
  for (const DType dtype : kQuantized) {
    stored.push_back(Make(dtype, rows, 768, static_cast<uint32_t>(rows)));
    rows += 7;
  }
  stored.push_back(Make(DType::kF32, 20, 768, 5));
  std::vector<std::vector<float>> expected;
  for (const Stored& s : stored) {
    const Range r{0, s.tensor.rows()}, c{256, 736};
    source.parts.push_back({&s.tensor, r, c});
    for (auto& row : Rows(s, r, c)) expected.push_back(std::move(row));
  }
  // fp32: sums of 480 products. bf16: both factors rounded, 2^-9 rms each at most. int8:
  // activations in blocks of 32 err by 0.54 % (Gaussian), with room for the K formats' scales.
  EXPECT_LT(ProductError(Pack(source, ComputeType::kFp32), expected, Best(false)), 1e-6);
  EXPECT_LT(ProductError(Pack(source, ComputeType::kBf16), expected, Best(true)), 0.004);
  const double int8 = ProductError(Pack(source, ComputeType::kInt8), expected, Best(false));
  EXPECT_LT(int8, 0.009);
  EXPECT_GT(int8, 1e-4);  // it did quantise
}

TEST_F(CpuMatrixTest, TinyScalesKeepTheirBits) {
  // Block scales far below fp16's normal numbers: a power of two moves to the output.
  for (const DType dtype : {DType::kQ4K, DType::kQ5K, DType::kQ6K}) {
    const Stored s = Make(dtype, 40, 256, 8, 2e-4f);
    const MatrixSource source{"tiny", {{&s.tensor, {0, 40}, {0, 256}}}};
    EXPECT_LT(
        ProductError(Pack(source, ComputeType::kInt8), Rows(s, {0, 40}, {0, 256}), Best(false)),
        0.009)
        << Info(dtype).name;
  }
}

TEST_F(CpuMatrixTest, ACutThroughABlockFallsBackToBf16) {
  const Stored s = Make(DType::kQ8_0, 10, 96, 4);
  const MatrixSource source{"cut", {{&s.tensor, {0, 10}, {48, 96}}}};
  EXPECT_EQ(CpuFormat(source, source.parts[0], ComputeType::kInt8), WeightFormat::kBf16);
  EXPECT_LT(ProductError(Pack(source, ComputeType::kInt8), Rows(s, {0, 10}, {48, 96}), Best(false)),
            0.004);
  const MatrixSource whole{"whole", {{&s.tensor, {0, 10}, {32, 96}}}};
  EXPECT_EQ(CpuFormat(whole, whole.parts[0], ComputeType::kInt8), WeightFormat::kQ8);
}

TEST_F(CpuMatrixTest, KeepsTheRouterInFp32) {
  const Stored s = Make(DType::kF32, 10, 100, 4);
  const MatrixSource source{"router", {{&s.tensor, {0, 10}, {0, 100}}}, true};
  for (const ComputeType compute : {ComputeType::kBf16, ComputeType::kInt8}) {
    CpuArithmetic arithmetic = Best(true);
    if (Supported(Arithmetic::kDotBf16)) arithmetic.floating = Arithmetic::kDotBf16;
    EXPECT_LT(ProductError(Pack(source, compute), Rows(s, {0, 10}, {0, 100}), arithmetic), 1e-6);
  }
}

TEST(MappedRangesTest, LeavesAnonymousMemoryAlone) {
  const MappedRanges ranges = MappedRanges::OfThisProcess();
  std::vector<uint8_t> heap(1 << 20, 7);
  ranges.GiveBack(heap.data(), static_cast<int64_t>(heap.size()));
  for (const uint8_t b : heap) ASSERT_EQ(b, 7);
}

}  // namespace
}  // namespace lapidary
