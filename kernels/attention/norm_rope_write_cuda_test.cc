// Against the formula in double. The kernel's fp32 part: a norm of d squares errs by less than
// d / 2 * 2^-24 relative (summed in 32 parts: far less), a rotation by 2^-23 of its two terms, each
// product by 2^-24: 2^-19 of the row's largest number covers d = 1024. Then what is stored rounds
// once: half a step of bf16, or of e4m3 at the number over its scale.
#include "kernels/attention/norm_rope_write_cuda.h"

#include <cstring>
#include <memory>
#include <random>

#include "kernels/attention/device_test_support.h"

namespace lapidary {
namespace {

constexpr double kFp32 = 0x1p-19;

struct Case {
  GpuKvLayout layout;
  int pairs = 0;
  int q_heads = 3;
  int kv_heads = 2;
  bool k_eq_v = false;
  bool v_norm = true;
  bool qk_norm = true;
  int misaligned = 0;  // elements that qkv starts off its alignment

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << (c.layout.type == GpuKvType::kBf16 ? "bf16" : "e4m3")
               << (c.layout.format == KvFormat::kSplit ? " split " : " folded ")
               << c.layout.head_dim << " pairs " << c.pairs << " heads " << c.q_heads << "/"
               << c.kv_heads << (c.k_eq_v ? " k=v" : "") << (c.v_norm ? "" : " raw v")
               << (c.qk_norm ? "" : " raw qk") << " off " << c.misaligned;
  }
};

class NormRopeWriteTest : public testing::TestWithParam<Case> {
 protected:
  static constexpr int kTokens = 7;
  static constexpr int kPages = 5;
  // Two tokens of one page, shuffled pages, a padding token.
  const std::vector<int32_t> page_of_{3, 3, 0, -1, 4, 2, 1};
  const std::vector<int32_t> positions_{30, 31, 0, 0, 1000, 17, 5};

  NormRopeWriteTest() {
    const Case& c = GetParam();
    const int d = c.layout.head_dim;
    std::mt19937 random(d + c.pairs);
    std::normal_distribution<float> normal;
    heads_ = c.q_heads + c.kv_heads * (c.k_eq_v ? 1 : 2);
    stride_ = int64_t{heads_} * d + 24;
    qkv_.resize(c.misaligned + kTokens * stride_);
    for (size_t i = 0; i < qkv_.size(); ++i) {
      qkv_[i] = __float2bfloat16(normal(random) * (i % 97 == 5 ? 20 : 1));
    }
    const auto weights = [&] {
      std::vector<float> w(d);
      for (float& x : w) x = 1 + 0.5f * normal(random);
      return w;
    };
    q_norm_ = weights(), k_norm_ = weights(), key_weight_ = weights();
    for (int t = 0; t < kTokens; ++t) {
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < c.pairs; ++i) {
          const double angle = positions_[t] * std::pow(1e4, -2.0 * i / d);
          cos_sin_.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
    layer_offset_ = 256;
    page_bytes_ = layer_offset_ + (c.kv_heads + 1) * c.layout.head_bytes();
  }

  // Runs the kernel; pool and query start as poison.
  cudaError_t Run(std::vector<uint8_t>* pool, std::vector<__nv_bfloat16>* query) {
    const Case& c = GetParam();
    const DeviceArray<__nv_bfloat16> qkv(qkv_),
        out(kTokens * c.q_heads * int64_t{c.layout.score_columns()});
    const DeviceArray<float> q_norm(q_norm_), k_norm(k_norm_), key_weight(key_weight_),
        cos_sin(cos_sin_);
    const DeviceArray<int32_t> page_of(page_of_), positions(positions_);
    const DeviceArray<uint8_t> pages(kPages * page_bytes_);
    NormRopeWriteParams p{.layout = c.layout,
                          .qkv = qkv.data() + c.misaligned,
                          .qkv_stride = stride_,
                          .tokens = kTokens,
                          .q_heads = c.q_heads,
                          .kv_heads = c.kv_heads,
                          .k_eq_v = c.k_eq_v,
                          .v_norm = c.v_norm,
                          .query_scale = 0.3f,
                          .q_norm = c.qk_norm ? q_norm.data() : nullptr,
                          .k_norm = c.qk_norm ? k_norm.data() : nullptr,
                          .key_weight = key_weight.data(),
                          .cos_sin = cos_sin.data(),
                          .pairs = c.pairs,
                          .query = out.data(),
                          .page_of = page_of.data(),
                          .positions = positions.data(),
                          .pool = pages.data(),
                          .page_bytes = page_bytes_,
                          .layer_offset = layer_offset_};
    cudaStream_t stream = nullptr;
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    const cudaError_t launched = LaunchNormRopeWrite(p, stream);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    *pool = pages.Get();
    *query = out.Get();
    return launched;
  }

  // Head `index` of the row, normed, times w, turned.
  std::vector<double> Head(int token, int index, bool norm, const std::vector<float>* w,
                           bool turn) const {
    const Case& c = GetParam();
    const int d = c.layout.head_dim;
    std::vector<double> x(d);
    double squares = 0;
    for (int i = 0; i < d; ++i) {
      x[i] = Float(qkv_[c.misaligned + token * stride_ + int64_t{index} * d + i]);
      squares += x[i] * x[i];
    }
    if (norm) {
      for (int i = 0; i < d; ++i) x[i] *= (w ? (*w)[i] : 1.0) / std::sqrt(squares / d + 1e-6);
    }
    if (turn) {
      for (int i = 0; i < c.pairs; ++i) {
        const double cosine = cos_sin_[token * 2 * c.pairs + i];
        const double sine = cos_sin_[token * 2 * c.pairs + c.pairs + i];
        const double a = x[i], b = x[i + d / 2];
        x[i] = a * cosine - b * sine;
        x[i + d / 2] = b * cosine + a * sine;
      }
    }
    return x;
  }

  static double Largest(const std::vector<double>& x) {
    double largest = 0;
    for (double v : x) largest = std::max(largest, std::abs(v));
    return largest;
  }

  // A row of a tile: expected[column], NaN-free; columns not named hold zeros.
  void ExpectArea(const uint8_t* tile, int slot, int first, int count,
                  const std::vector<double>& expected, float scale) const {
    const GpuKvLayout& layout = GetParam().layout;
    const double slack = Largest(expected) * kFp32;
    for (int c = 0; c < count; ++c) {
      const int byte = (first + c) * layout.element_bytes();
      const uint8_t* at = tile + layout.ChunkOffset(slot, byte / 16) + byte % 16;
      const double want = c < static_cast<int>(expected.size()) ? expected[c] : 0;
      double got, tolerance = slack;
      if (layout.type == GpuKvType::kBf16) {
        __nv_bfloat16 x;
        memcpy(&x, at, sizeof x);
        got = Float(x);
        tolerance += HalfStepBf16(want * (1 + kFp32));
      } else {
        got = E4m3(*at) * double{scale};
        tolerance += HalfStepE4m3(want / scale * (1 + kFp32)) * scale;
      }
      if (want == 0) tolerance = 0;
      EXPECT_LE(std::abs(got - want), tolerance)
          << "slot " << slot << " column " << first + c << " is " << got << " and not " << want;
    }
  }

  int heads_ = 0;
  int64_t stride_ = 0, page_bytes_ = 0, layer_offset_ = 0;
  std::vector<__nv_bfloat16> qkv_;
  std::vector<float> q_norm_, k_norm_, key_weight_, cos_sin_;
};

TEST_P(NormRopeWriteTest, QueriesArePacked) {
  const Case& c = GetParam();
  std::vector<uint8_t> pool;
  std::vector<__nv_bfloat16> query;
  ASSERT_EQ(Run(&pool, &query), cudaSuccess);
  const int columns = c.layout.score_columns();
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < c.q_heads; ++h) {
      const __nv_bfloat16* got = &query[(int64_t{t} * c.q_heads + h) * columns];
      std::vector<double> x = Head(t, h, c.qk_norm, &q_norm_, true);
      const double slack = Largest(x) * 0.3f * kFp32 * 4;  // w_k is below 4
      std::vector<double> expected(columns, 0.0);
      for (int i = 0; i < c.layout.head_dim; ++i) {
        const int place = c.layout.QueryPlace(i);
        const double scaled = x[i] * 0.3f;
        expected[place >= 0 ? place : -1 - place] = place >= 0 ? scaled : scaled * key_weight_[i];
      }
      for (int i = 0; i < columns; ++i) {
        if (page_of_[t] < 0) {
          EXPECT_TRUE(std::isnan(Float(got[i]))) << "a padding token's query was written";
          continue;
        }
        const double tolerance =
            expected[i] == 0 ? 0 : HalfStepBf16(expected[i] * (1 + kFp32)) + slack;
        EXPECT_LE(std::abs(Float(got[i]) - expected[i]), tolerance)
            << "token " << t << " head " << h << " place " << i << " is " << Float(got[i])
            << " and not " << expected[i];
      }
    }
  }
}

TEST_P(NormRopeWriteTest, KeysAndValuesAreInTheirPages) {
  const Case& c = GetParam();
  std::vector<uint8_t> pool;
  std::vector<__nv_bfloat16> query;
  ASSERT_EQ(Run(&pool, &query), cudaSuccess);
  std::vector<bool> written(pool.size());
  for (int t = 0; t < kTokens; ++t) {
    if (page_of_[t] < 0) continue;
    const int slot = positions_[t] % kPageTokens;
    for (int h = 0; h < c.kv_heads; ++h) {
      const int64_t at = page_of_[t] * page_bytes_ + layer_offset_ + h * c.layout.head_bytes();
      const uint8_t* tile = &pool[at];
      const int first = c.q_heads + h;
      const std::vector<double> value =
          Head(t, c.k_eq_v ? first : first + c.kv_heads, c.v_norm, nullptr, false);
      const std::vector<double> key = Head(t, first, c.qk_norm, &k_norm_, true);
      std::vector<double> kept(c.layout.key_columns(), 0.0);
      for (int i = 0; i < c.layout.head_dim; ++i) {
        const int column = c.layout.KeyColumn(i);
        if (column >= 0) kept[column - c.layout.value_columns()] = key[i];
      }
      float scales[2] = {1, 1};
      if (c.layout.type == GpuKvType::kE4m3) {
        for (int i = 0; i < 2; ++i) {
          const int64_t byte = c.layout.tile_bytes() + 4 * (i * kPageTokens + slot);
          memcpy(&scales[i], tile + byte, 4);
          double largest = Largest(i == 0 ? kept : value);
          if (c.layout.format == KvFormat::kFolded)
            largest = std::max(Largest(kept), Largest(value));
          const double want = largest == 0 ? 1 : largest / 448;
          EXPECT_NEAR(scales[i], want, want * kFp32 * 2);
          std::fill_n(written.begin() + at + byte, 4, true);
        }
      }
      ExpectArea(tile, slot, 0, c.layout.value_columns(), value, scales[1]);
      ExpectArea(tile, slot, c.layout.value_columns(), c.layout.key_columns(), kept, scales[0]);
      std::fill_n(written.begin() + at + slot * c.layout.row_bytes(), c.layout.row_bytes(), true);
    }
  }
  int64_t touched = 0;
  for (size_t i = 0; i < pool.size(); ++i) touched += !written[i] && pool[i] != 0xff ? 1 : 0;
  EXPECT_EQ(touched, 0) << "bytes of other slots, heads or layers";
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const GpuKvType type : {GpuKvType::kBf16, GpuKvType::kE4m3}) {
    const auto split = [&](int d, int pairs) {
      return Case{.layout = {type, KvFormat::kSplit, d, 0}, .pairs = pairs};
    };
    const auto folded = [&](int d, int pairs) {
      Case c{.layout = {type, KvFormat::kFolded, d, pairs}, .pairs = pairs};
      c.k_eq_v = true;
      return c;
    };
    for (const auto& [d, pairs] : {std::pair{2, 1},
                                   {6, 3},
                                   {20, 10},
                                   {40, 7},
                                   {64, 32},
                                   {72, 36},
                                   {80, 40},
                                   {96, 48},
                                   {128, 64},
                                   {192, 20},
                                   {256, 128},
                                   {320, 160},
                                   {512, 64},
                                   {512, 256},
                                   {1024, 512},
                                   {1024, 0}}) {
      cases.push_back(split(d, pairs));
    }
    for (const auto& [d, pairs] : {std::pair{32, 4},
                                   {48, 16},
                                   {72, 20},
                                   {80, 0},
                                   {128, 16},
                                   {160, 80},
                                   {256, 20},
                                   {512, 64},
                                   {512, 72},
                                   {1024, 64}}) {
      cases.push_back(folded(d, pairs));
    }
    cases.push_back(split(256, 128));
    cases.back().misaligned = 1;
    cases.push_back(split(512, 64));
    cases.back().misaligned = 4;
    cases.push_back(split(512, 64));
    cases.back().misaligned = 2;
    cases.push_back(split(256, 128));
    cases.back().v_norm = cases.back().qk_norm = false;
    cases.push_back(split(256, 128));
    cases.back().kv_heads = 0;  // shares another layer's pages
    cases.push_back(folded(512, 64));
    cases.back().kv_heads = 0;
    cases.push_back(split(128, 64));
    cases.back().k_eq_v = true;
    cases.push_back(folded(128, 16));
    cases.back().q_heads = 9, cases.back().kv_heads = 1;
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Shapes, NormRopeWriteTest, testing::ValuesIn(Cases()));

// One token of one kv head of 64.
struct OneHead {
  explicit OneHead(const std::vector<float>& k) : pool(layout.head_bytes()) {
    std::vector<__nv_bfloat16> row(2 * 64, __float2bfloat16(1));
    for (int i = 0; i < 64; ++i) row[i] = __float2bfloat16(k[i]);
    const DeviceArray<__nv_bfloat16> qkv(row);
    const DeviceArray<int32_t> zero(std::vector<int32_t>{0});
    NormRopeWriteParams p;
    p.layout = layout;
    p.qkv = qkv.data();
    p.qkv_stride = 128;
    p.tokens = p.kv_heads = 1;
    p.v_norm = false;
    p.page_of = p.positions = zero.data();
    p.pool = pool.data();
    p.page_bytes = layout.head_bytes();
    EXPECT_EQ(LaunchNormRopeWrite(p, nullptr), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<uint8_t> bytes = pool.Get();
    memcpy(&key_scale, &bytes[layout.tile_bytes()], 4);
    memcpy(&value_scale, &bytes[layout.tile_bytes() + 64], 4);
    for (int i = 0; i < 64; ++i) {
      const int byte = layout.KeyColumn(i);
      code.push_back(bytes[layout.ChunkOffset(0, byte / 16) + byte % 16]);
    }
  }
  const GpuKvLayout layout{GpuKvType::kE4m3, KvFormat::kSplit, 64, 0};
  DeviceArray<uint8_t> pool;
  float key_scale, value_scale;
  std::vector<uint8_t> code;
};

TEST(NormRopeWriteE4m3Test, ARowOfZerosHasScaleOne) {
  const OneHead head(std::vector<float>(64, 0.0f));
  EXPECT_EQ(head.key_scale, 1);
  EXPECT_EQ(head.value_scale, 1.0f / 448);
  for (const uint8_t code : head.code) EXPECT_EQ(code, 0);
}

TEST(NormRopeWriteE4m3Test, TheLargestBecomes448AndSmallOnesSubnormal) {
  std::vector<float> k(64, 0.0f);
  k[7] = -448, k[40] = 0x1p-9f, k[41] = 3 * 0x1p-9f, k[42] = 0x1p-10f, k[43] = 17;
  const OneHead head(k);
  EXPECT_EQ(head.key_scale, 1);
  EXPECT_EQ(E4m3(head.code[7]), -448);
  EXPECT_EQ(E4m3(head.code[40]), 0x1p-9f);
  EXPECT_EQ(E4m3(head.code[41]), 3 * 0x1p-9f);
  EXPECT_EQ(E4m3(head.code[42]), 0);   // half of the smallest: to even
  EXPECT_EQ(E4m3(head.code[43]), 16);  // between 16 and 18: to even
}

TEST(NormRopeWriteE4m3Test, ARowThatIsNotFiniteReadsAsNan) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> k(64, 1.0f);
    k[33] = bad;
    EXPECT_TRUE(std::isnan(OneHead(k).key_scale));
  }
}

TEST(NormRopeWriteArgumentsTest, BadSizesAreRefusedAndNoTokensAreFine) {
  NormRopeWriteParams p;
  p.layout = {GpuKvType::kBf16, KvFormat::kSplit, 64, 0};
  p.q_heads = 1;
  p.tokens = 0;
  EXPECT_EQ(LaunchNormRopeWrite(p, nullptr), cudaSuccess);
  const auto refused = [](NormRopeWriteParams bad) {
    bad.tokens = 1;
    return LaunchNormRopeWrite(bad, nullptr) == cudaErrorInvalidValue;
  };
  NormRopeWriteParams bad = p;
  bad.layout.head_dim = 63;
  EXPECT_TRUE(refused(bad));
  bad.layout.head_dim = 1026;
  EXPECT_TRUE(refused(bad));
  bad = p;
  bad.pairs = 33;
  EXPECT_TRUE(refused(bad));
  bad = p;
  bad.q_heads = 0;
  EXPECT_TRUE(refused(bad));
  bad = p;
  bad.layout.format = KvFormat::kSingle;
  EXPECT_TRUE(refused(bad));
  bad = p;
  bad.layout.format = KvFormat::kFolded;
  bad.layout.rotated_pairs = bad.pairs = 16;  // without w_k
  EXPECT_TRUE(refused(bad));
}

}  // namespace
}  // namespace lapidary
