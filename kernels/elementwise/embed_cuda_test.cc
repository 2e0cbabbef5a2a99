// Ids, embeddings and gathered rows against plain loops.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/device_test_support.h"
#include "kernels/elementwise/row_ops_cuda.h"

namespace lapidary {
namespace {

TEST(ResolveIds, TakesWhatWasSampledWhereTheIdIsNotKnown) {
  for (const int64_t tokens : {int64_t{1}, int64_t{255}, int64_t{600}}) {
    std::vector<int32_t> known(tokens), from(tokens), sampled(50);
    for (int i = 0; i < 50; ++i) sampled[i] = 1000 + i;
    for (int64_t t = 0; t < tokens; ++t) {
      known[t] = static_cast<int32_t>(t);
      from[t] = t % 3 == 0 ? static_cast<int32_t>(t % 50) : -1;
    }
    DeviceArray<int32_t> device_known(known), device_from(from), device_sampled(sampled),
        ids(tokens), all_known(tokens);
    ResolveIdsParams p;
    p.known = device_known.data();
    p.sampled_from = device_from.data();
    p.sampled = device_sampled.data();
    p.ids = ids.data();
    p.tokens = tokens;
    TestStream stream;
    ASSERT_EQ(LaunchResolveIds(p, stream), cudaSuccess);
    p.sampled_from = nullptr;
    p.sampled = nullptr;
    p.ids = all_known.data();
    ASSERT_EQ(LaunchResolveIds(p, stream), cudaSuccess);
    const std::vector<int32_t> got = ids.Get();
    for (int64_t t = 0; t < tokens; ++t) {
      ASSERT_EQ(got[t], from[t] < 0 ? known[t] : sampled[from[t]]) << t;
    }
    EXPECT_EQ(all_known.Get(), known);
  }
}

TEST(Embed, ScalesRowsOfThisShard) {
  struct Shape {
    int64_t tokens, dim, table_stride, x_stride, skew;
  };
  for (const Shape& s : {Shape{5, 64, 64, 64, 0}, Shape{6, 7, 9, 8, 0},
                         Shape{3, 1536, 1536, 1536, 0}, Shape{3, 5376, 5376, 5376, 0},
                         Shape{4, 2050, 2051, 2053, 1}, Shape{2, 6200, 6208, 6200, 0}}) {
    constexpr int64_t kFirst = 100, kRows = 9;
    const auto table = RandomBf16(kRows * s.table_stride, 1, 1);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < s.tokens; ++t) {
      constexpr int32_t kIds[] = {100, 99, 108, 109, 104, -1};
      ids.push_back(kIds[t % 6]);
    }
    DeviceArray<__nv_bfloat16> device_table(table, s.skew);
    DeviceArray<int32_t> device_ids(ids);
    DeviceArray<float> x(s.tokens * s.x_stride, s.skew);
    EmbedParams p;
    p.ids = device_ids.data();
    p.table = device_table.data();
    p.table_stride = s.table_stride;
    p.first_id = kFirst;
    p.vocab_rows = kRows;
    p.scale = 39.1918f;
    p.x = x.data();
    p.x_stride = s.x_stride;
    p.tokens = s.tokens;
    p.dim = s.dim;
    TestStream stream;
    ASSERT_EQ(LaunchEmbed(p, stream), cudaSuccess);
    const std::vector<float> got = x.Get();
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t row = ids[t] - kFirst;
      for (int64_t i = 0; i < s.x_stride; ++i) {
        const float value = got[t * s.x_stride + i];
        if (i >= s.dim) {
          ASSERT_TRUE(std::isnan(value)) << "beyond the row";
          continue;
        }
        const bool here = row >= 0 && row < kRows;
        ASSERT_EQ(value, here ? Float(table[row * s.table_stride + i]) * p.scale : 0)
            << "token " << t << ", column " << i;
      }
    }
  }
}

// The norm errs by 2^-19 (rms_norm_cuda_test.cc), the sum and its products by 2^-23 of the larger
// summand.
TEST(MixEmbeddings, NormsAddsAndScales) {
  struct Shape {
    int64_t tokens, layers, dim, extra, skew;
  };
  for (const Shape& s : {Shape{3, 5, 256, 0, 0}, Shape{4, 3, 12, 1, 0}, Shape{2, 2, 513, 3, 1},
                         Shape{1, 35, 256, 0, 0}, Shape{2, 1, 6400, 0, 0}}) {
    constexpr int64_t kTable = 7;
    const int64_t width = s.layers * s.dim;
    const auto projected = RandomBf16(s.tokens * (width + s.extra), 4, 2);
    const auto table = RandomBf16(kTable * width, 0.05f, 3);
    const auto w = RandomFloats(s.dim, 1, 4);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < s.tokens; ++t) {
      constexpr int32_t kIds[] = {6, 7, 0, -1};
      ids.push_back(kIds[t % 4]);
    }
    // The table in the host's memory, as a worker holds it.
    __nv_bfloat16* mapped = nullptr;
    ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&mapped), table.size() * 2), cudaSuccess);
    std::copy(table.begin(), table.end(), mapped);
    DeviceArray<int32_t> device_ids(ids);
    DeviceArray<__nv_bfloat16> device_projected(projected, s.skew);
    DeviceArray<float> device_w(w), ple(s.tokens * (width + s.extra), s.skew);
    MixEmbeddingsParams p;
    p.ids = device_ids.data();
    p.projected = device_projected.data();
    p.projected_stride = width + s.extra;
    p.table = mapped;
    p.table_rows = kTable;
    p.w = device_w.data();
    p.projection_scale = 0.0255f;
    p.table_scale = 16;
    p.ple = ple.data();
    p.ple_stride = width + s.extra;
    p.tokens = s.tokens;
    p.layers = s.layers;
    p.dim = s.dim;
    TestStream stream;
    ASSERT_EQ(LaunchMixEmbeddings(p, stream), cudaSuccess);
    const std::vector<float> got = ple.Get();
    ASSERT_EQ(cudaFreeHost(mapped), cudaSuccess);
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t l = 0; l < s.layers; ++l) {
        const __nv_bfloat16* row = &projected[t * (width + s.extra) + l * s.dim];
        double sum = 0;
        for (int64_t i = 0; i < s.dim; ++i) {
          const double v = double{Float(row[i])} * double{p.projection_scale};
          sum += v * v;
        }
        const double scale = 1 / std::sqrt(sum / static_cast<double>(s.dim) + double{p.eps});
        for (int64_t i = 0; i < s.dim; ++i) {
          const double normed =
              double{Float(row[i])} * double{p.projection_scale} * scale * double{w[i]};
          const bool stored = ids[t] >= 0 && ids[t] < kTable;
          const double from_table =
              stored ? double{Float(table[ids[t] * width + l * s.dim + i])} * 16 : 0.0;
          const double expected = (normed + from_table) * std::sqrt(0.5);
          ASSERT_NEAR(got[t * (width + s.extra) + l * s.dim + i], expected,
                      std::abs(normed) * 0x1p-18 + std::abs(from_table) * 0x1p-22)
              << "token " << t << ", layer " << l << ", column " << i;
        }
      }
    }
  }
}

TEST(GatherRows, MovesBytes) {
  struct Shape {
    int64_t rows, row_bytes, in_stride, out_stride, skew;  // skew in words
  };
  for (const Shape& s :
       {Shape{4, 4, 4, 8, 0}, Shape{5, 1024, 1024, 1024, 0}, Shape{3, 10752, 10752, 10752, 0},
        Shape{3, 100, 104, 112, 0}, Shape{3, 64, 64, 64, 1}}) {
    constexpr int64_t kIn = 6;
    std::vector<uint32_t> in(kIn * s.in_stride / 4);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * 2654435761u);
    std::vector<int32_t> row_of;
    for (int64_t r = 0; r < s.rows; ++r) row_of.push_back(static_cast<int32_t>((r * 5 + 1) % kIn));
    DeviceArray<uint32_t> device_in(in, s.skew), out(s.rows * s.out_stride / 4, s.skew);
    DeviceArray<int32_t> device_row_of(row_of);
    GatherRowsParams p;
    p.in = device_in.data();
    p.in_stride_bytes = s.in_stride;
    p.out = out.data();
    p.out_stride_bytes = s.out_stride;
    p.row_of = device_row_of.data();
    p.rows = s.rows;
    p.row_bytes = s.row_bytes;
    TestStream stream;
    ASSERT_EQ(LaunchGatherRows(p, stream), cudaSuccess);
    const std::vector<uint32_t> got = out.Get();
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t i = 0; i < s.out_stride / 4; ++i) {
        ASSERT_EQ(got[r * s.out_stride / 4 + i],
                  i * 4 < s.row_bytes ? in[row_of[r] * s.in_stride / 4 + i] : 0xffffffffu)
            << "row " << r << ", word " << i;
      }
    }
  }
}

TEST(Embeddings, RefuseBadSizesAndDoNothingForNoRows) {
  TestStream stream;
  EXPECT_EQ(LaunchResolveIds({}, stream), cudaSuccess);
  EXPECT_EQ(LaunchEmbed({}, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMixEmbeddings({}, stream), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchGatherRows({}, stream), cudaErrorInvalidValue);
  GatherRowsParams gather;
  gather.row_bytes = 6;
  EXPECT_EQ(LaunchGatherRows(gather, stream), cudaErrorInvalidValue);
  gather.row_bytes = 8;
  EXPECT_EQ(LaunchGatherRows(gather, stream), cudaSuccess);
}

}  // namespace
}  // namespace lapidary
