// Every format and arithmetic against double over odd shapes, and the bits of a row whatever its
// batch, its place in it, the number of threads, and the instruction set.
#include "kernels/gemm/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/gemm/internal/activations.h"
#include "kernels/gemm/internal/matmul_plan.h"
#include "kernels/gemm/matmul_test_support.h"

namespace lapidary {
namespace {

constexpr float kUntouched = 12345.0f;

struct Product {
  const TestWeight& w;
  Arithmetic arithmetic;
  bool round_to_bf16 = false;
};

// y [rows, n] of rows [first, first + rows) of x [*, k], through a strided x and a strided y whose
// further columns must stay untouched.
std::vector<float> Multiply(ThreadTeam& team, const Product& p, const std::vector<float>& x,
                            int64_t first, int64_t rows) {
  const int64_t n = p.w.packed.n, k = p.w.packed.k;
  const int64_t x_stride = k + 3, y_stride = n + 5;
  std::vector<float> strided(rows * x_stride, std::numeric_limits<float>::quiet_NaN());
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(&x[(first + r) * k], k, &strided[r * x_stride]);
  }
  ActivationRows activations;
  activations.Set(team, strided.data(), rows, k, x_stride, p.arithmetic, p.round_to_bf16);
  std::vector<float> y(rows * y_stride, kUntouched), dense(rows * n);
  Matmul(team, p.w.packed, activations, y.data(), y_stride);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(&y[r * y_stride], n, &dense[r * n]);
    for (int64_t c = n; c < y_stride; ++c) {
      EXPECT_EQ(y[r * y_stride + c], kUntouched) << "row " << r << " column " << c;
    }
  }
  return dense;
}

bool SameBits(const std::vector<float>& a, const float* b) {
  return memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

// The roundings on the way to one output, each at most 2^-24 of the sum of magnitudes. Float: one
// per k, with vdpbf16ps two (it rounds product and sum). int8: per block the scaled dot and the
// sum, and with a min the scaled sum and one more sum.
double Roundings(Arithmetic arithmetic, const WeightFormatInfo& info, int64_t k) {
  if (!IsInt8(arithmetic)) return static_cast<double>(k) * 2;
  const int64_t blocks = (k + info.block_k - 1) / info.block_k;
  return static_cast<double>(blocks) * (info.has_min ? 4 : 2);
}

void ExpectNearDouble(const Product& p, const std::vector<float>& x, int64_t rows,
                      const std::vector<float>& y) {
  const int64_t n = p.w.packed.n, k = p.w.packed.k;
  const WeightFormatInfo& info = Info(p.w.packed.format);
  const std::vector<float> seen =
      SeenByArithmetic(x, rows, k, p.arithmetic, info.block_k, p.round_to_bf16);
  double worst = 0;
  std::string where;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0, magnitude = 0;
      for (int64_t i = 0; i < k; ++i) {
        sum += double{seen[r * k + i]} * p.w.values[c * k + i];
        magnitude += std::fabs(double{seen[r * k + i]}) * p.w.magnitude[c * k + i];
      }
      const double bound = magnitude * (Roundings(p.arithmetic, info, k) + 1) * 0x1p-24;
      const double error = std::fabs(sum - y[r * n + c]) / std::max(bound, 1e-37);
      if (!(error <= worst)) {
        worst = error;
        where = "row " + std::to_string(r) + " column " + std::to_string(c) + ": " +
                std::to_string(y[r * n + c]) + ", expected " + std::to_string(sum);
      }
    }
  }
  EXPECT_LE(worst, 1.0) << Name(p.arithmetic) << " n " << n << " k " << k << " rows " << rows
                        << " worst at " << where;
}

struct Shape {
  int64_t n, k;
};
constexpr Shape kShapes[] = {{1, 1},    {1, 640},  {12, 31},  {31, 12},   {32, 32},  {33, 33},
                             {640, 12}, {12, 100}, {100, 33}, {100, 640}, {640, 100}};

class MatmulTest : public testing::TestWithParam<WeightFormat> {};

TEST_P(MatmulTest, AgreesWithDoubleOverOddShapes) {
  const auto team = ThreadTeam::Create(2, {});
  for (const Shape& shape : kShapes) {
    const TestWeight w = MakeWeight(GetParam(), shape.n, shape.k, 7);
    const std::vector<float> x = Gaussian(70 * shape.k, 11);
    for (Arithmetic arithmetic : SupportedFor(GetParam())) {
      for (int64_t rows : {1, 3, 17, 70}) {
        const Product p{w, arithmetic};
        ExpectNearDouble(p, x, rows, Multiply(*team, p, x, 0, rows));
      }
    }
  }
}

TEST_P(MatmulTest, ARowHasTheSameBitsInEveryBatch) {
  const auto team = ThreadTeam::Create(2, {});
  constexpr int64_t kRows = 300;  // more than one round of the scratch
  for (const Shape& shape : {Shape{150, 1056}, Shape{33, 100}}) {  // several chunks of K; few
    const TestWeight w = MakeWeight(GetParam(), shape.n, shape.k, 8);
    const std::vector<float> x = Gaussian(kRows * shape.k, 12);
    for (Arithmetic arithmetic : SupportedFor(GetParam())) {
      const Product p{w, arithmetic};
      const std::vector<float> all = Multiply(*team, p, x, 0, kRows);
      for (int64_t rows :
           {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 49, 64, 65, 257}) {
        const int64_t first = rows * 37 % (kRows - rows + 1);
        EXPECT_TRUE(SameBits(Multiply(*team, p, x, first, rows), &all[first * shape.n]))
            << Name(arithmetic) << " n " << shape.n << " rows " << rows;
      }
    }
  }
}

TEST_P(MatmulTest, InstructionSetsAndThreadsGiveTheSameBits) {
  const auto one = ThreadTeam::Create(1, {}), three = ThreadTeam::Create(3, {});
  for (const Shape& shape : kShapes) {
    const TestWeight w = MakeWeight(GetParam(), shape.n, shape.k, 9);
    const std::vector<float> x = Gaussian(70 * shape.k, 13);
    for (int64_t rows : {1, 6, 12, 20, 70}) {
      const Arithmetic base =
          IsQuantized(GetParam()) ? Arithmetic::kInt8Avx2 : Arithmetic::kFmaAvx2;
      const std::vector<float> expected = Multiply(*one, {w, base}, x, 0, rows);
      for (Arithmetic arithmetic : SupportedFor(GetParam())) {
        const std::vector<float> y = Multiply(*three, {w, arithmetic}, x, 0, rows);
        if (arithmetic == Arithmetic::kDotBf16) {
          EXPECT_TRUE(SameBits(Multiply(*one, {w, arithmetic}, x, 0, rows), y.data()));
        } else {
          EXPECT_TRUE(SameBits(expected, y.data()))
              << Name(arithmetic) << " n " << shape.n << " k " << shape.k << " rows " << rows;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, MatmulTest,
                         testing::Values(WeightFormat::kQ8, WeightFormat::kQ8Block16,
                                         WeightFormat::kQ4, WeightFormat::kQ4Min, WeightFormat::kQ5,
                                         WeightFormat::kQ5Min, WeightFormat::kBf16,
                                         WeightFormat::kFp32),
                         [](const auto& info) { return std::string(Info(info.param).name); });

TEST(Matmul, RoundsActivationsToBf16OnRequest) {
  const auto team = ThreadTeam::Create(1, {});
  const TestWeight w = MakeWeight(WeightFormat::kBf16, 33, 100, 3);
  const std::vector<float> x = Gaussian(5 * 100, 4);
  const Product p{w, Arithmetic::kFmaAvx2, true};
  const std::vector<float> y = Multiply(*team, p, x, 0, 5);
  ExpectNearDouble(p, x, 5, y);
  EXPECT_FALSE(SameBits(Multiply(*team, {w, Arithmetic::kFmaAvx2, false}, x, 0, 5), y.data()));
}

// The largest dot of a block: all codes at their extreme against +-127, where vpmaddubsw or an
// int16 sum would saturate.
TEST(Matmul, ExtremeCodesDoNotSaturate) {
  const auto team = ThreadTeam::Create(1, {});
  for (WeightFormat format : {WeightFormat::kQ8, WeightFormat::kQ8Block16, WeightFormat::kQ4,
                              WeightFormat::kQ4Min, WeightFormat::kQ5, WeightFormat::kQ5Min}) {
    const WeightFormatInfo& info = Info(format);
    constexpr int64_t kN = 32, kK = 64;
    PackedWeight w(format, kN, kK);
    const std::vector<float> scales(w.blocks(), 1.0f), mins(w.blocks(), 0.0f);
    for (int64_t c = 0; c < kN; ++c) {
      const auto code = static_cast<uint8_t>(c % 2 == 0 ? 0 : CodeLevels(format) - 1);
      const std::vector<uint8_t> codes(kK, code);
      PackQuantizedRow(w, c, codes.data(), scales.data(), mins.data());
    }
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(kK, sign * 127.0f);  // scale 1, code 127
      for (Arithmetic arithmetic : SupportedFor(format)) {
        ActivationRows rows;
        rows.Set(*team, x.data(), 1, kK, kK, arithmetic, false);
        std::vector<float> y(kN);
        Matmul(*team, w, rows, y.data(), kN);
        for (int64_t c = 0; c < kN; ++c) {
          const int code = (c % 2 == 0 ? 0 : CodeLevels(format) - 1) - info.zero_point;
          ASSERT_EQ(y[c], sign * 127.0f * static_cast<float>(code * kK))
              << info.name << " " << Name(arithmetic) << " column " << c;
        }
      }
    }
  }
}

// Block scales of 1e-6 are subnormal in fp16 and keep 4 bits or fewer there; with an output scale
// they keep all 11, so a value errs by 2^-11 at most.
TEST(Matmul, TinyScalesKeepTheirBits) {
  const auto team = ThreadTeam::Create(1, {});
  for (float scale : {1.2345e-6f, 6.7e-12f, 5.4321e-30f}) {
    PackedWeight w(WeightFormat::kQ8, 1, 32);
    w.output_scale = ChooseOutputScale(scale);
    const std::vector<uint8_t> codes(32, 129);  // 1
    PackQuantizedRow(w, 0, codes.data(), &scale, nullptr);
    float row[32], y = 0;
    UnpackRow(w, 0, row);
    EXPECT_NEAR(row[0] / scale, 1.0, 0x1p-11);
    std::fill(row, row + 32, 127.0f);
    ActivationRows rows;
    rows.Set(*team, row, 1, 32, 32, BestInt8(), false);
    Matmul(*team, w, rows, &y, 1);
    EXPECT_NEAR(y / (127 * 32 * scale), 1.0, 0x1p-11 + 0x1p-23);
  }
  EXPECT_EQ(ChooseOutputScale(1.0f), 0x1p-14f);
  EXPECT_EQ(ChooseOutputScale(-3.0f), 0x1p-13f);
  EXPECT_EQ(ChooseOutputScale(0.0f), 1.0f);
  EXPECT_EQ(ChooseOutputScale(std::numeric_limits<float>::infinity()), 1.0f);
}

// One Set serves weights of every block size and zero point.
TEST(Matmul, OneActivationServesAllFormats) {
  const auto team = ThreadTeam::Create(2, {});
  constexpr int64_t kN = 40, kK = 96, kRows = 5;
  const std::vector<float> x = Gaussian(kRows * kK, 6);
  ActivationRows rows;
  rows.Set(*team, x.data(), kRows, kK, kK, BestInt8(), false);
  for (WeightFormat format : {WeightFormat::kQ5, WeightFormat::kQ8, WeightFormat::kQ8Block16,
                              WeightFormat::kQ4Min, WeightFormat::kQ4}) {
    const TestWeight w = MakeWeight(format, kN, kK, 5);
    std::vector<float> y(kRows * kN);
    Matmul(*team, w.packed, rows, y.data(), kN);
    EXPECT_TRUE(SameBits(Multiply(*team, {w, BestInt8()}, x, 0, kRows), y.data()))
        << Info(format).name;
  }
}

TEST(Matmul, ZeroTinyAndBrokenRows) {
  const auto team = ThreadTeam::Create(1, {});
  const TestWeight w = MakeWeight(WeightFormat::kQ8, 8, 64, 5);
  std::vector<float> x(4 * 64, 0.0f);
  for (int i = 0; i < 64; ++i) x[64 + i] = 1e-38f;
  x[2 * 64 + 40] = std::numeric_limits<float>::quiet_NaN();
  x[3 * 64 + 40] = std::numeric_limits<float>::infinity();
  for (Arithmetic arithmetic : SupportedFor(WeightFormat::kQ8)) {
    const std::vector<float> y = Multiply(*team, {w, arithmetic}, x, 0, 4);
    for (int c = 0; c < 8; ++c) {
      EXPECT_EQ(y[c], 0.0f);
      EXPECT_EQ(y[8 + c], 0.0f);
      EXPECT_TRUE(std::isnan(y[16 + c]));
      EXPECT_TRUE(std::isnan(y[24 + c]));
    }
  }
  ActivationRows none;
  none.Set(*team, x.data(), 0, 64, 64, BestInt8(), false);
  Matmul(*team, w.packed, none, nullptr, 8);  // no rows: no work
}

// A wide team on a narrow matrix cuts the rows too; nothing changes but who computes what.
TEST(Matmul, RowsInPartsAreTheSame) {
  EXPECT_EQ(RowParts(20, 512, 2), 1);
  EXPECT_EQ(RowParts(20, 127, 16), 1);
  EXPECT_EQ(RowParts(20, 512, 16), 4);
  EXPECT_EQ(RowParts(1, 512, 16), 8);
  const auto wide = ThreadTeam::Create(7, {}), one = ThreadTeam::Create(1, {});
  const std::vector<float> x = Gaussian(400 * 64, 6);
  for (WeightFormat format : {WeightFormat::kQ4, WeightFormat::kFp32}) {
    const Arithmetic arithmetic = IsQuantized(format) ? BestInt8() : BestFma();
    const TestWeight w = MakeWeight(format, 150, 64, 5);
    for (int64_t rows : {128, 300, 400}) {
      ASSERT_GT(RowParts(w.packed.panels(), rows, 7), 1);
      const std::vector<float> expected = Multiply(*one, {w, arithmetic}, x, 0, rows);
      EXPECT_TRUE(SameBits(expected, Multiply(*wide, {w, arithmetic}, x, 0, rows).data())) << rows;
    }
  }
}

// Many panels and rows: AMX comes back to a group of panels for every 64 rows. An odd number of
// panels, an odd number of blocks, a ragged end of both.
TEST(Matmul, AmxInGroupsOfPanelsIsTheSame) {
  if (!Supported(Arithmetic::kInt8Amx)) GTEST_SKIP() << "no AMX here";
  const auto team = ThreadTeam::Create(1, {});
  constexpr int64_t kN = 1030, kK = 1050, kRows = 150;
  const std::vector<float> x = Gaussian(kRows * kK, 6);
  for (WeightFormat format : {WeightFormat::kQ8, WeightFormat::kQ4Min, WeightFormat::kQ5}) {
    const TestWeight w = MakeWeight(format, kN, kK, 5);
    const MatmulPlan plan = PlanMatmul(w.packed, kRows, Arithmetic::kInt8Amx);
    ASSERT_NE(plan.amx, nullptr);
    ASSERT_LT(plan.group_panels, w.packed.panels());
    const std::vector<float> expected = Multiply(*team, {w, Arithmetic::kInt8Vnni}, x, 0, kRows);
    EXPECT_TRUE(SameBits(expected, Multiply(*team, {w, Arithmetic::kInt8Amx}, x, 0, kRows).data()))
        << Info(format).name;
  }
}

// A CPU with GFNI never runs the other way to shift nibbles: compare them tile by tile.
TEST(Tile, GfniChangesNothing) {
  if (!Supported(Arithmetic::kInt8Vnni) || !__builtin_cpu_supports("gfni")) {
    GTEST_SKIP() << "no VNNI and GFNI here";
  }
  const auto team = ThreadTeam::Create(1, {});
  const std::vector<float> x = Gaussian(6 * 96, 3);
  ActivationRows rows;
  rows.Set(*team, x.data(), 6, 96, 96, Arithmetic::kInt8Vnni, false);
  const Int8Rows& by32 = rows.impl().by32;
  for (WeightFormat format :
       {WeightFormat::kQ4, WeightFormat::kQ4Min, WeightFormat::kQ5, WeightFormat::kQ5Min}) {
    const TestWeight w = MakeWeight(format, 32, 96, 4);
    TileArgs args = {};
    args.w = w.packed.data.data();
    args.x = by32.x.data();
    args.start = by32.start(Info(format).zero_point);
    args.scale = reinterpret_cast<const BlockScale*>(by32.scales.data());
    args.x_stride = 6 * 32;
    args.row_stride = 6;
    args.blocks = 3;
    args.start_at_zero = true;
    args.prefetch = args.w;
    alignas(64) float with[6 * 32], without[6 * 32];
    const int f = static_cast<int>(format);
    for (int r = 0; r < 6; ++r) {
      for (int stream = 0; stream < 2; ++stream) {
        args.acc = with;
        kVnniGfniTiles.tile[f][stream][r](args);
        args.acc = without;
        kVnniTiles.tile[f][stream][r](args);
        EXPECT_EQ(memcmp(with, without, (r + 1) * 32 * sizeof(float)), 0)
            << Info(format).name << " rows " << r + 1;
      }
    }
    const HugeBuffer a(3 * kWidenedMinBytes), b(3 * kWidenedMinBytes);
    kVnniGfniTiles.widen[f](args.w, 3, a.data());
    kVnniTiles.widen[f](args.w, 3, b.data());
    EXPECT_EQ(memcmp(a.data(), b.data(), a.bytes()), 0);
  }
}

// A result over 1 MB with aligned rows takes the streaming stores.
TEST(Matmul, LargeResultsAreTheSame) {
  const auto team = ThreadTeam::Create(2, {});
  constexpr int64_t kN = 4100, kK = 32, kRows = 65, kStride = 4104;
  const TestWeight w = MakeWeight(WeightFormat::kQ4, kN, kK, 5);
  const std::vector<float> x = Gaussian(kRows * kK, 6);
  const HugeBuffer buffer(kRows * kStride * sizeof(float));
  auto* y = reinterpret_cast<float*>(buffer.data());
  ActivationRows rows;
  rows.Set(*team, x.data(), kRows, kK, kK, BestInt8(), false);
  Matmul(*team, w.packed, rows, y, kStride);
  for (int64_t r = 0; r < kRows; r += 8) {
    EXPECT_TRUE(SameBits(Multiply(*team, {w, BestInt8()}, x, r, 1), y + r * kStride)) << r;
    for (int64_t c = kN; c < kStride; ++c) EXPECT_EQ(y[r * kStride + c], 0.0f);
  }
}

TEST(Arithmetic, NamesComeBackAndAutoFits) {
  const auto team = ThreadTeam::Create(1, {});
  for (int i = 0; i < kArithmetics; ++i) {
    EXPECT_EQ(ParseArithmetic(Name(static_cast<Arithmetic>(i))), static_cast<Arithmetic>(i));
  }
  EXPECT_FALSE(ParseArithmetic("auto").has_value());
  for (ComputeType compute : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8}) {
    const std::optional<Arithmetic> a = ResolveArithmetic(*team, compute, "auto");
    ASSERT_TRUE(a.has_value());
    EXPECT_TRUE(Supported(*a) && Fits(*a, compute));
    EXPECT_EQ(ResolveArithmetic(*team, compute, Name(*a)), a);
    EXPECT_FALSE(ResolveArithmetic(*team, compute, "fma-avx9").has_value());
  }
  EXPECT_FALSE(ResolveArithmetic(*team, ComputeType::kInt8, "fma-avx2").has_value());
  EXPECT_FALSE(ResolveArithmetic(*team, ComputeType::kFp32, "dot-bf16").has_value());
}

}  // namespace
}  // namespace lapidary
