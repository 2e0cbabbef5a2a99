#include "kernels/moe/moe_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "kernels/gemm/product_cuda_test_support.h"

namespace lapidary {
namespace {

bool HaveDevice() { return !TestChips().empty(); }

// A stream for one launch, waited for at the end.
class TestStream {
 public:
  TestStream() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~TestStream() {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }
  operator cudaStream_t() const { return stream_; }  // NOLINT

 private:
  cudaStream_t stream_ = nullptr;
};

// -- Router.

struct RouterCase {
  int64_t tokens = 1, dim = 1;
  int experts = 1, top_k = 1;
  int64_t x_pad = 0, w_pad = 0;  // strides beyond dim
};
struct RouterData {
  explicit RouterData(const RouterCase& c, uint32_t seed = 1)
      : x(c.tokens * (c.dim + c.x_pad), NAN),
        w(c.experts * (c.dim + c.w_pad), NAN),
        norm(c.dim),
        factor(c.experts) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t t = 0; t < c.tokens; ++t) {
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 12) - 4);  // norms away
      for (int64_t k = 0; k < c.dim; ++k) {
        x[t * (c.dim + c.x_pad) + k] = size * normal(random) * (k % 29 == 3 ? 20.0f : 1.0f);
      }
    }
    for (int e = 0; e < c.experts; ++e) {
      for (int64_t k = 0; k < c.dim; ++k) w[e * (c.dim + c.w_pad) + k] = normal(random);
    }
    const float root = 1.0f / std::sqrt(static_cast<float>(c.dim));
    for (float& v : norm) v = root * (1.0f + 0.1f * normal(random));
    for (float& v : factor) v = 0.5f + 0.001f * static_cast<float>(random() % 1000);
  }
  std::vector<float> x, w, norm, factor;
};
struct Routed {
  std::vector<int32_t> chosen;
  std::vector<float> weight, logits;
};

constexpr float kEps = 1e-6f;

Routed Route(const RouterCase& c, const RouterData& data) {
  const DeviceBytes x(data.x), w(data.w), norm(data.norm), factor(data.factor);
  const DeviceBytes chosen(std::vector<int32_t>(c.tokens * c.top_k, -7));
  const DeviceBytes weight(std::vector<float>(c.tokens * c.top_k, NAN));
  const DeviceBytes logits(std::vector<float>(c.tokens * c.experts, NAN));
  {
    const TestStream stream;
    const RouterParams p{.x = x.as<float>(),
                         .x_stride = c.dim + c.x_pad,
                         .norm_weight = norm.as<float>(),
                         .w = w.as<float>(),
                         .w_stride = c.dim + c.w_pad,
                         .factor = factor.as<float>(),
                         .eps = kEps,
                         .tokens = c.tokens,
                         .dim = c.dim,
                         .experts = c.experts,
                         .top_k = c.top_k,
                         .logits = logits.as<float>(),
                         .chosen = chosen.as<int32_t>(),
                         .weight = weight.as<float>()};
    EXPECT_EQ(LaunchRouter(p, stream), cudaSuccess);
  }
  return {chosen.Read<int32_t>(), weight.Read<float>(), logits.Read<float>()};
}

void CheckRouter(const RouterCase& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " tokens, dim " << c.dim << ", " << c.experts
                                  << " experts, top " << c.top_k);
  const RouterData data(c);
  const Routed routed = Route(c, data);
  Comparison logits, weights;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* x = &data.x[t * (c.dim + c.x_pad)];
    double square = 0;
    for (int64_t k = 0; k < c.dim; ++k) square += double{x[k]} * x[k];
    const double root = 1 / std::sqrt(square / static_cast<double>(c.dim) + double{kEps});
    std::vector<Expected> expected(c.experts);
    double worst = 0;
    for (int e = 0; e < c.experts; ++e) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < c.dim; ++k) {
        const double product = double{x[k]} * data.norm[k] * data.w[e * (c.dim + c.w_pad) + k];
        sum += product;
        magnitude += std::abs(product);
      }
      // A thread adds dim / 256 + 4 products, then 5 + 8 sums meet; each addition and the product
      // with the norm's weight round by 2^-24 of what they give. The root errs by as much as the
      // sum of squares, halved, and 3 roundings.
      const double additions = static_cast<double>(c.dim) / 256 + 4 + 5 + 8 + 1;
      const double error =
          root * (magnitude * additions * 0x1p-24 + std::abs(sum) * (additions / 2 + 3) * 0x1p-24);
      expected[e] = {sum * root, error};
      worst = std::max(worst, error);
      logits.Add("logits", t, e, routed.logits[t * c.experts + e], expected[e]);
    }
    // The choice is what the logits that were computed say: exactly, and ties to the lower expert.
    const float* own = &routed.logits[t * c.experts];
    std::vector<int> order(c.experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return own[a] > own[b]; });
    std::vector<int> best(order.begin(), order.begin() + c.top_k);
    std::sort(best.begin(), best.end());
    double total = 0;
    for (const int e : best) total += std::exp(expected[e].value - expected[order[0]].value);
    for (int j = 0; j < c.top_k; ++j) {
      ASSERT_EQ(routed.chosen[t * c.top_k + j], best[j]) << "token " << t << " place " << j;
      const double w = std::exp(expected[best[j]].value - expected[order[0]].value) / total *
                       data.factor[best[j]];
      // exp errs by the two logits' errors and its own 2 units; so does each summand of the total.
      weights.Add("weight", t, j, routed.weight[t * c.top_k + j],
                  {w, w * (4 * worst + (c.top_k + 8) * 0x1p-23)});
    }
  }
}

TEST(RouterTest, FollowsTheReference) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  CheckRouter({.tokens = 1, .dim = 2816, .experts = 128, .top_k = 8});
  CheckRouter({.tokens = 9, .dim = 256, .experts = 8, .top_k = 2});
  CheckRouter({.tokens = 3, .dim = 1, .experts = 1, .top_k = 1});
  CheckRouter({.tokens = 5, .dim = 75, .experts = 7, .top_k = 7, .x_pad = 1});
  CheckRouter({.tokens = 8, .dim = 1026, .experts = 256, .top_k = 16, .x_pad = 2, .w_pad = 6});
  CheckRouter({.tokens = 63, .dim = 54, .experts = 9, .top_k = 3});
  CheckRouter({.tokens = 67, .dim = 300, .experts = 13, .top_k = 4, .w_pad = 4});
}

TEST(RouterTest, TiesGoToTheLowerExpert) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  const RouterCase c{.tokens = 4, .dim = 64, .experts = 96, .top_k = 5};
  RouterData data(c);
  for (int e = 0; e < c.experts; ++e) {  // 40 rows twice, 16 rows of zeros
    for (int64_t k = 0; k < c.dim; ++k) {
      data.w[e * c.dim + k] = e < 80 ? data.w[e % 40 * c.dim + k] : (e % 2 == 0 ? 0.0f : -0.0f);
    }
  }
  std::fill_n(data.x.begin() + 3 * c.dim, c.dim, 0.0f);  // all logits 0
  const Routed routed = Route(c, data);
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::set<int> chosen(&routed.chosen[t * 5], &routed.chosen[t * 5 + 5]);
    ASSERT_EQ(chosen.size(), 5u);
    for (const int e : chosen) {
      if (e < 40 || e >= 80) continue;
      EXPECT_TRUE(chosen.count(e - 40)) << "token " << t << " expert " << e;
    }
  }
  for (int j = 0; j < 5; ++j) {
    EXPECT_EQ(routed.chosen[15 + j], j);
    EXPECT_FLOAT_EQ(routed.weight[15 + j], 0.2f * data.factor[j]);
  }
}

TEST(RouterTest, BitsDependOnTheRowAlone) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  RouterCase c{.tokens = 1, .dim = 300, .experts = 11, .top_k = 4};
  const RouterData one(c);
  const Routed expected = Route(c, one);
  for (const int64_t tokens : {2, 8, 13, 70}) {
    c.tokens = tokens;
    RouterData data(c, static_cast<uint32_t>(tokens));
    data.w = one.w, data.norm = one.norm, data.factor = one.factor;
    const int64_t place = tokens * 5 / 7;
    std::copy(one.x.begin(), one.x.end(), data.x.begin() + place * c.dim);
    const Routed routed = Route(c, data);
    // NOLINTBEGIN(bugprone-suspicious-memory-comparison): the bits
    EXPECT_EQ(std::memcmp(&routed.logits[place * 11], expected.logits.data(), 11 * 4), 0) << tokens;
    EXPECT_EQ(std::memcmp(&routed.weight[place * 4], expected.weight.data(), 4 * 4), 0) << tokens;
    EXPECT_EQ(std::memcmp(&routed.chosen[place * 4], expected.chosen.data(), 4 * 4), 0) << tokens;
    // NOLINTEND(bugprone-suspicious-memory-comparison)
  }
}

// -- Sort.

struct SortCase {
  int64_t tokens = 0;
  int top_k = 0, all_experts = 0;  // ids are below
  int first = 0, experts = 0;      // of this rank
  int crowd = -1;                  // an expert that everybody chooses
};

void CheckSort(const SortCase& c) {
  SCOPED_TRACE(testing::Message() << c.tokens << " tokens, top " << c.top_k << " of "
                                  << c.all_experts << ", experts " << c.first << " + "
                                  << c.experts);
  std::mt19937 random(7);
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::set<int32_t> own;
    if (c.crowd >= 0) own.insert(c.crowd);
    while (static_cast<int>(own.size()) < c.top_k) {
      own.insert(static_cast<int32_t>(random() % c.all_experts));
    }
    chosen.insert(chosen.end(), own.begin(), own.end());
  }
  const DeviceBytes device_chosen(chosen);
  const DeviceBytes device_begin(std::vector<int32_t>(c.experts + 1, -9));
  const DeviceBytes device_token(std::vector<int32_t>(chosen.size(), -9));
  const DeviceBytes device_slot(std::vector<int32_t>(chosen.size(), -9));
  {
    const TestStream stream;
    const ExpertSortParams p{.chosen = device_chosen.as<int32_t>(),
                             .tokens = c.tokens,
                             .top_k = c.top_k,
                             .first_expert = c.first,
                             .experts = c.experts,
                             .begin = device_begin.as<int32_t>(),
                             .token_of = device_token.as<int32_t>(),
                             .slot_of = device_slot.as<int32_t>()};
    ASSERT_EQ(LaunchExpertSort(p, stream), cudaSuccess);
  }
  std::vector<int32_t> begin, token_of, slot_of(chosen.size(), -1);
  for (int e = 0; e < c.experts; ++e) {
    begin.push_back(static_cast<int32_t>(token_of.size()));
    for (size_t i = 0; i < chosen.size(); ++i) {
      if (chosen[i] != c.first + e) continue;
      slot_of[i] = static_cast<int32_t>(token_of.size());
      token_of.push_back(static_cast<int32_t>(i) / c.top_k);
    }
  }
  begin.push_back(static_cast<int32_t>(token_of.size()));
  token_of.resize(chosen.size(), -9);  // not written
  EXPECT_EQ(device_begin.Read<int32_t>(), begin);
  EXPECT_EQ(device_token.Read<int32_t>(), token_of);
  EXPECT_EQ(device_slot.Read<int32_t>(), slot_of);
}

TEST(ExpertSortTest, OrdersSlotsByExpert) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  CheckSort({.tokens = 1, .top_k = 1, .all_experts = 1, .first = 0, .experts = 1});
  CheckSort({.tokens = 1, .top_k = 8, .all_experts = 128, .first = 0, .experts = 128});
  CheckSort({.tokens = 5, .top_k = 2, .all_experts = 8, .first = 0, .experts = 8});
  CheckSort({.tokens = 33, .top_k = 3, .all_experts = 12, .first = 5, .experts = 4});
  CheckSort({.tokens = 40, .top_k = 2, .all_experts = 8, .first = 100, .experts = 3});  // none here
  CheckSort({.tokens = 17, .top_k = 2, .all_experts = 8, .first = 2, .experts = 0});
  CheckSort({.tokens = 300, .top_k = 1, .all_experts = 6, .first = 0, .experts = 6, .crowd = 4});
  CheckSort({.tokens = 171, .top_k = 3, .all_experts = 256, .first = 0, .experts = 256});
  CheckSort({.tokens = 1000, .top_k = 16, .all_experts = 40, .first = 39, .experts = 1});
}
TEST(ExpertSortTest, TakesTheLargestStep) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  CheckSort({.tokens = 16384, .top_k = 8, .all_experts = 64, .first = 3, .experts = 2, .crowd = 4});
}

// -- Combine.

void CheckCombine(int64_t tokens, int64_t dim, int top_k, int64_t out_stride, int64_t y_stride) {
  SCOPED_TRACE(testing::Message() << tokens << " tokens, dim " << dim << ", top " << top_k);
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  const int64_t slots = tokens * top_k / 2 + 1;
  std::vector<uint16_t> out(slots * out_stride, 0xffff);
  for (int64_t s = 0; s < slots; ++s) {
    for (int64_t i = 0; i < dim; ++i) out[s * out_stride + i] = Bf16Bits(normal(random));
  }
  std::vector<int32_t> slot_of(tokens * top_k, -1);
  std::vector<float> weight(tokens * top_k);
  for (size_t i = 0; i < slot_of.size(); ++i) {
    weight[i] = normal(random);
    // The second token has no local expert.
    if (static_cast<int64_t>(i) / top_k != 1 && random() % 3 > 0) {
      slot_of[i] = static_cast<int32_t>(random() % slots);
    }
  }
  const DeviceBytes device_out(out), device_slot(slot_of), device_weight(weight);
  const DeviceBytes y(std::vector<uint16_t>((tokens + 1) * y_stride, 0xffff));
  {
    const TestStream stream;
    const ExpertCombineParams p{.out = device_out.as<__nv_bfloat16>(),
                                .out_stride = out_stride,
                                .slot_of = device_slot.as<int32_t>(),
                                .weight = device_weight.as<float>(),
                                .tokens = tokens,
                                .dim = dim,
                                .top_k = top_k,
                                .y = y.as<__nv_bfloat16>(),
                                .y_stride = y_stride};
    ASSERT_EQ(LaunchExpertCombine(p, stream), cudaSuccess);
  }
  const std::vector<uint16_t> got = y.Read<uint16_t>();
  const int64_t written = std::min(y_stride, (dim + 7) / 8 * 8);
  Comparison comparison;
  for (int64_t t = 0; t <= tokens; ++t) {
    for (int64_t i = 0; i < y_stride; ++i) {
      const uint16_t bits = got[t * y_stride + i];
      if (t == tokens || i >= written) {
        ASSERT_EQ(bits, 0xffff) << "row " << t << " column " << i;
        continue;
      }
      double sum = 0, magnitude = 0;
      for (int j = 0; j < top_k && i < dim; ++j) {
        const int32_t slot = slot_of[t * top_k + j];
        if (slot < 0) continue;
        const double product =
            double{weight[t * top_k + j]} * Bf16Value(out[slot * out_stride + i]);
        sum += product;
        magnitude += std::abs(product);
      }
      comparison.Add("y", t, i, Bf16Value(bits), RoundedToBf16({sum, magnitude * top_k * 0x1p-24}));
    }
  }
}

TEST(ExpertCombineTest, FollowsTheReference) {
  if (!HaveDevice()) GTEST_SKIP() << "no device";
  CheckCombine(1, 8, 1, 8, 8);
  CheckCombine(3, 2816, 8, 2816, 2816);
  CheckCombine(5, 75, 3, 80, 88);
  CheckCombine(5, 75, 3, 75, 77);  // rows that take no vector accesses
  CheckCombine(9, 1030, 16, 1032, 1040);
  CheckCombine(2, 1, 2, 1, 1);
}

TEST(MoeLaunchTest, NothingToDoAndBadSizes) {
  RouterParams router{
      .x_stride = 4, .w_stride = 4, .tokens = 0, .dim = 4, .experts = 4, .top_k = 2};
  float logits = 0;
  router.logits = &logits;
  EXPECT_EQ(LaunchRouter(router, nullptr), cudaSuccess);
  router.top_k = 5;
  EXPECT_EQ(LaunchRouter(router, nullptr), cudaErrorInvalidValue);
  router.top_k = 2, router.experts = 257;
  EXPECT_EQ(LaunchRouter(router, nullptr), cudaErrorInvalidValue);
  router.experts = 4, router.x_stride = 3;
  EXPECT_EQ(LaunchRouter(router, nullptr), cudaErrorInvalidValue);
  router.x_stride = 4, router.logits = nullptr;
  EXPECT_EQ(LaunchRouter(router, nullptr), cudaErrorInvalidValue);

  ExpertSortParams sort{.tokens = 0, .top_k = 2, .experts = 4};
  EXPECT_EQ(LaunchExpertSort(sort, nullptr), cudaSuccess);
  sort.top_k = 17;
  EXPECT_EQ(LaunchExpertSort(sort, nullptr), cudaErrorInvalidValue);

  ExpertCombineParams combine{.out_stride = 8, .tokens = 0, .dim = 8, .top_k = 2, .y_stride = 8};
  EXPECT_EQ(LaunchExpertCombine(combine, nullptr), cudaSuccess);
  combine.y_stride = 7;
  EXPECT_EQ(LaunchExpertCombine(combine, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lapidary
