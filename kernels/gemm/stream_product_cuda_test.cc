#include "kernels/gemm/stream_product_cuda.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/gemm/product_cuda_test_support.h"
#include "kernels/gemm/stream_product_plan.h"

namespace lapidary {
namespace {

const char* Name(ProductEpilogue e) {
  return e == ProductEpilogue::kBf16 ? "bf16" : e == ProductEpilogue::kFp32 ? "fp32" : "gated";
}

struct Case {
  GpuNumber number = GpuNumber::kBf16;
  bool tiled = false;
  int64_t n = 0, k = 0;
  int tokens = 0;
  ProductEpilogue epilogue = ProductEpilogue::kBf16;
  float softcap = 0;
  int64_t y_stride = 0;  // 0: outputs
};

// Runs a product and returns the bits of y [tokens + 1, y_stride], poisoned before.
std::vector<uint8_t> Product(const Case& c, const Numbers& w, const Numbers& x,
                             const StreamPlan& plan, const Chip& chip) {
  GpuMatrix matrix{.number = c.number, .tiled = c.tiled, .n = c.n, .k = c.k};
  matrix.k_stride = c.tiled ? 0 : PaddedStride(w);
  const DeviceBytes w_bytes(MatrixBytes(w, matrix)), w_scale(w.scale);
  const DeviceBytes x_bytes(Strided(x, PaddedStride(x))), x_scale(x.scale);
  const int64_t outputs = c.epilogue == ProductEpilogue::kGatedGelu ? c.n / 2 : c.n;
  const int64_t stride = c.y_stride > 0 ? c.y_stride : outputs;
  const int64_t element = c.epilogue == ProductEpilogue::kFp32 ? 4 : 2;
  const DeviceBytes y(std::vector<uint8_t>((c.tokens + 1) * stride * element, 0xff));
  matrix.data = w_bytes.as();
  ProductInput in{.x = x_bytes.as(), .stride = PaddedStride(x)};
  if (c.number == GpuNumber::kE4m3) {
    matrix.scale = w_scale.as<float>();
    in.scale = x_scale.as<float>();
  }
  const ProductOutput out{
      .y = y.as(), .stride = stride, .epilogue = c.epilogue, .softcap = c.softcap};
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(LaunchStreamProduct(matrix, in, c.tokens, out, plan, chip, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  return y.Read<uint8_t>();
}

Expected ExpectedOutput(const Case& c, const Numbers& w, const Numbers& x, int64_t t, int64_t o) {
  if (c.epilogue == ProductEpilogue::kGatedGelu) {
    return RoundedToBf16(Gated(Sum(w, GateRow(o), x, t), Sum(w, UpRow(o), x, t)));
  }
  const Expected sum = Sum(w, o, x, t);
  if (c.epilogue == ProductEpilogue::kBf16) return RoundedToBf16(sum);
  return c.softcap == 0 ? sum : Capped(sum, c.softcap);
}

void Check(const Case& c, const StreamPlan& plan, const Chip& chip) {
  SCOPED_TRACE(testing::Message() << "n " << c.n << " k " << c.k << " tokens " << c.tokens << " "
                                  << Name(c.epilogue) << (c.tiled ? " tiled" : " row-major")
                                  << (c.number == GpuNumber::kE4m3 ? " e4m3" : " bf16")
                                  << " row_tile " << plan.row_tile << " token_tile "
                                  << plan.token_tile << " sm_" << chip.compute_capability);
  const Numbers w = MakeNumbers(c.number, c.n, c.k, 1), x = MakeNumbers(c.number, c.tokens, c.k, 2);
  const std::vector<uint8_t> y = Product(c, w, x, plan, chip);
  const bool fp32 = c.epilogue == ProductEpilogue::kFp32;
  const int64_t outputs = c.epilogue == ProductEpilogue::kGatedGelu ? c.n / 2 : c.n;
  const int64_t stride = c.y_stride > 0 ? c.y_stride : outputs;
  const int64_t written = fp32 ? outputs : std::min(stride, (outputs + 7) / 8 * 8);
  Comparison comparison;
  for (int64_t t = 0; t <= c.tokens; ++t) {
    for (int64_t o = 0; o < stride; ++o) {
      const int64_t i = t * stride + o;
      uint32_t bits = 0;
      std::memcpy(&bits, &y[i * (fp32 ? 4 : 2)], fp32 ? 4 : 2);
      if (t == c.tokens || o >= written) {
        ASSERT_EQ(bits, fp32 ? 0xffffffffu : 0xffffu) << "row " << t << " column " << o;
      } else if (o >= outputs) {
        ASSERT_EQ(bits, 0u) << "row " << t << " column " << o;
      } else {
        float value;
        if (!fp32) bits <<= 16;
        std::memcpy(&value, &bits, 4);
        comparison.Add("y", t, o, value, ExpectedOutput(c, w, x, t, o));
      }
    }
  }
}

TEST(StreamProductTest, AwkwardSizesFollowTheReference) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  const int64_t ns[] = {1, 7, 54, 75, 211}, ks[] = {10, 50, 54, 704};
  int i = 0;
  for (const int64_t n : ns) {
    for (const int64_t k : ks) {
      for (const bool tiled : {false, true}) {
        for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
          Case c{.number = number, .tiled = tiled, .n = n, .k = k, .tokens = 1 + i * 5 % 9};
          c.epilogue = i % 3 == 0 ? ProductEpilogue::kFp32 : ProductEpilogue::kBf16;
          c.softcap = i % 2 == 0 ? 30.0f : 0.0f;
          c.y_stride = i % 4 == 0 ? 0 : (n + 15) / 8 * 8;  // 0: rows that take no vector stores
          const Chip& chip = chips[i % chips.size()];
          Check(c, PlanStream({.n = n, .k = k}, c.tokens, chip), chip);
          ++i;
        }
      }
    }
  }
}

TEST(StreamProductTest, EveryTileFollowsTheReference) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  const Chip& chip = chips.back().shared_bytes > 128 << 10 ? chips.back() : chips.front();
  for (const int row_tile : {16, 32, 64}) {
    for (const int token_tile : {8, 16, 32, 64}) {
      for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
        const StreamPlan plan{token_tile, row_tile, kStreamWarps};
        if (StreamSharedBytes(row_tile, token_tile) > chip.shared_bytes) continue;
        Case c{.number = number, .tiled = row_tile == 32, .n = 80, .k = 330};
        c.tokens = token_tile - 3;
        Check(c, plan, chip);
        c.epilogue = ProductEpilogue::kGatedGelu;
        c.tiled = !c.tiled;
        c.tokens = token_tile == 64 ? 17 : token_tile + 1;  // a second tile
        Check(c, plan, chip);
      }
    }
  }
}

// What one token of 26B-A4B asks for, on a part of the outputs.
TEST(StreamProductTest, GemmaSizesFollowTheReference) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    for (const bool tiled : {false, true}) {
      Case c{.number = number, .tiled = tiled, .n = 352, .k = 2816, .tokens = 1};
      c.epilogue = tiled ? ProductEpilogue::kGatedGelu : ProductEpilogue::kBf16;
      Check(c, PlanStream({.n = c.n}, c.tokens, chips.back()), chips.back());
      c = {.number = number, .tiled = tiled, .n = 176, .k = 4096, .tokens = 3};
      c.epilogue = tiled ? ProductEpilogue::kBf16 : ProductEpilogue::kFp32;
      c.softcap = 30;
      Check(c, PlanStream({.n = c.n}, c.tokens, chips.front()), chips.front());
    }
  }
}

TEST(StreamProductTest, GatedOutputsPadToEight) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  for (const int64_t y_stride : {24, 27, 32}) {
    for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
      const Case c{.number = number,
                   .tiled = true,
                   .n = 48,
                   .k = 75,
                   .tokens = 3,
                   .epilogue = ProductEpilogue::kGatedGelu,
                   .y_stride = y_stride};
      for (const Chip& chip : chips) Check(c, PlanStream({.n = c.n}, c.tokens, chip), chip);
    }
  }
}

// The bits of a token's row: the same at every place, beside every other token, in every tile, from
// both layouts.
TEST(StreamProductTest, BitsDependOnTheRowAlone) {
  const std::vector<Chip> chips = TestChips();
  if (chips.empty()) GTEST_SKIP() << "no device";
  const Chip& chip = chips.front();
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    Case c{.number = number, .n = 75, .k = 600, .tokens = 1, .epilogue = ProductEpilogue::kFp32};
    const Numbers w = MakeNumbers(number, c.n, c.k, 3), own = MakeNumbers(number, 1, c.k, 4);
    const std::vector<uint8_t> alone = Product(c, w, own, {8, 64, kStreamWarps}, chip);
    const size_t row_bytes = static_cast<size_t>(c.n) * 4;
    int i = 0;
    for (const int token_tile : {8, 16, 32, 64}) {
      for (const int row_tile : {16, 32, 64}) {
        if (StreamSharedBytes(row_tile, token_tile) > chip.shared_bytes) continue;
        c.tokens = token_tile - i % 3;
        c.tiled = i % 2 == 0;
        const int64_t place = i * 7 % c.tokens;
        Numbers x = MakeNumbers(number, c.tokens, c.k, 5 + i++);
        std::copy(own.codes.begin(), own.codes.end(),
                  x.codes.begin() + place * static_cast<int64_t>(own.codes.size()));
        if (number == GpuNumber::kE4m3) x.scale[place] = own.scale[0];
        const std::vector<uint8_t> y = Product(c, w, x, {token_tile, row_tile, kStreamWarps}, chip);
        EXPECT_EQ(std::memcmp(&y[place * row_bytes], alone.data(), row_bytes), 0)
            << "token_tile " << token_tile << " row_tile " << row_tile << " place " << place;
      }
    }
  }
}

TEST(StreamProductTest, RefusesWhatItCannotDo) {
  const Chip chip{.compute_capability = 80, .processors = 108, .shared_bytes = 163 << 10};
  alignas(16) static uint8_t memory[1024];
  const GpuMatrix w{.data = memory, .n = 16, .k = 16, .k_stride = 16};
  const ProductInput in{.x = memory, .stride = 16};
  const ProductOutput out{.y = memory, .stride = 16};
  const StreamPlan plan = PlanStream(w, 1, chip);
  const auto launch = [&](const GpuMatrix& m, const ProductInput& i, const ProductOutput& o,
                          const StreamPlan& p) {
    return LaunchStreamProduct(m, i, 0, o, p, chip, nullptr);
  };
  EXPECT_EQ(launch(w, in, out, plan), cudaSuccess);  // no tokens, nothing done
  const auto refused = [&](auto change) {
    GpuMatrix m = w;
    ProductInput i = in;
    ProductOutput o = out;
    StreamPlan p = plan;
    change(m, i, o, p);
    EXPECT_EQ(launch(m, i, o, p), cudaErrorInvalidValue);
  };
  refused([](auto& m, auto&, auto&, auto&) { m.n = 0; });
  refused([](auto& m, auto&, auto&, auto&) { m.k_stride = 15; });
  refused([](auto& m, auto&, auto&, auto&) { m.k_stride = 20; });
  refused([](auto& m, auto&, auto&, auto&) { m.data = memory + 8; });
  refused([](auto& m, auto&, auto&, auto&) { m.number = GpuNumber::kE4m3; });  // no scales
  refused([](auto&, auto& i, auto&, auto&) { i.stride = 12; });
  refused([](auto&, auto& i, auto&, auto&) { i.x = memory + 2; });
  refused([](auto&, auto&, auto& o, auto&) { o.stride = 15; });
  refused([](auto& m, auto&, auto& o, auto&) {
    m.n = 24;
    o.epilogue = ProductEpilogue::kGatedGelu;
  });
  refused([](auto&, auto&, auto&, auto& p) { p.token_tile = 128; });
  refused([](auto&, auto&, auto&, auto& p) { p.row_tile = 8; });
  refused([](auto&, auto&, auto&, auto& p) { p.split_k = 2; });
}

TEST(StreamPlanTest, SmallMatricesGetSmallTiles) {
  const Chip h100{.compute_capability = 90, .processors = 132, .shared_bytes = 227 << 10};
  const Chip ada{.compute_capability = 89, .processors = 142, .shared_bytes = 99 << 10};
  const auto row_tile = [](int64_t n, int tokens, const Chip& chip) {
    const StreamPlan plan = PlanStream({.n = n, .k = 2816}, tokens, chip);
    EXPECT_LE(StreamSharedBytes(plan.row_tile, plan.token_tile), chip.shared_bytes);
    EXPECT_GE(plan.token_tile, std::min(tokens, 64));
    return plan.row_tile;
  };
  EXPECT_EQ(row_tile(262144, 1, h100), 64);
  EXPECT_EQ(row_tile(132 * 64, 1, h100), 64);
  EXPECT_EQ(row_tile(131 * 64, 1, h100), 32);
  EXPECT_EQ(row_tile(2816, 1, h100), 16);
  EXPECT_EQ(row_tile(1, 1, h100), 16);
  EXPECT_EQ(row_tile(262144, 64, h100), 64);
  EXPECT_EQ(row_tile(262144, 64, ada), 32);  // 128 KiB do not fit
  EXPECT_EQ(row_tile(262144, 32, ada), 64);
}

// The layout that kernels and loaders agree on, by its definition.
TEST(GpuMatrixTest, PlacesRows) {
  for (const GpuNumber number : {GpuNumber::kBf16, GpuNumber::kE4m3}) {
    for (const int64_t k : {1, 7, 8, 63, 64, 65, 200}) {
      GpuMatrix w{.number = number, .tiled = true, .n = 70, .k = k};
      const Numbers m = MakeNumbers(number, w.n, k, 6);
      std::vector<uint8_t> bytes = MatrixBytes(m, w);
      ASSERT_EQ(static_cast<int64_t>(bytes.size()), 2 * w.tiles_k() * 8192);
      const int64_t element = w.element_bytes();
      for (int64_t r = 0; r < w.n; ++r) {
        for (int64_t b = 0; b < k * element; ++b) {
          const int64_t in_tile = r % 64, chunk = b % 128 / 16;
          uint8_t& at = bytes[(r / 64 * w.tiles_k() + b / 128) * 8192 + in_tile * 128 +
                              (chunk ^ (in_tile % 8)) * 16 + b % 16];
          ASSERT_EQ(at, m.codes[r * k * element + b]) << "row " << r << " byte " << b;
          at = 0;
        }
      }
      EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0), static_cast<int64_t>(bytes.size()));

      w.tiled = false;
      w.k_stride = PaddedStride(m);
      std::vector<uint8_t> rows(w.bytes());
      PlaceMatrixRow(w, 69, &m.codes[69 * k * element], rows.data());
      EXPECT_EQ(
          std::memcmp(&rows[69 * w.k_stride * element], &m.codes[69 * k * element], k * element),
          0);
    }
  }
}

TEST(GpuMatrixTest, InterleavesGateAndUp) {
  EXPECT_EQ(GatedRows(1), 16);
  EXPECT_EQ(GatedRows(8), 16);
  EXPECT_EQ(GatedRows(704), 1408);
  EXPECT_EQ(GatedRows(54), 112);
  std::vector<int> used(GatedRows(54));
  for (int64_t o = 0; o < 54; ++o) {
    EXPECT_EQ(GateRow(o) / 16, o / 8);
    EXPECT_EQ(GateRow(o) % 16, o % 8);
    EXPECT_EQ(UpRow(o) % 16, o % 8 + 8);
    ++used[GateRow(o)], ++used[UpRow(o)];
  }
  EXPECT_EQ(std::count(used.begin(), used.end(), 1), 108);
  EXPECT_EQ(std::count(used.begin(), used.end(), 0), 4);
}

}  // namespace
}  // namespace lapidary
