// The forward pass against golden vectors of an independent fp64 reference (checked against Hugging
// Face's code: fp32 runs of these toys differ from it by at most 1e-5 in a logit; asked: 5e-5), and
// the invariants: how a batch is cut changes no bit, ranks change nothing but rounding.
#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "tests/worker/forward_harness.h"
#include "tests/worker/toy_model.h"

namespace lapidary {
namespace {

constexpr double kTolerance = 5e-5;
const std::vector<TokenId> kIds = {2, 7, 19, 4, 30, 11, 5, 23, 16, 9};

RunnerOptions Fp32(int threads = 2) {
  RunnerOptions options;
  options.compute = ComputeType::kFp32;
  options.threads = threads;
  options.max_step_tokens = 64;
  options.max_logits_rows = 64;
  return options;
}

struct Golden {
  const char* name;
  ModelSpec spec;
  std::vector<double> last;                   // logits of the last position (a prefix, or all)
  std::pair<int, std::vector<double>> other;  // another position's first logits
  std::vector<int> argmax;
  std::vector<double> l2_last, l2_first;  // of the stream after each layer
  friend std::ostream& operator<<(std::ostream& out, const Golden& g) { return out << g.name; }
};

std::vector<Golden> Goldens() {
  return {
      {"A",
       ToyA(),
       {-0.535551, 2.98544,   0.498307, -0.395237, -0.442458, -1.395908, -4.02702,  0.449785,
        1.879359,  4.814558,  0.206445, 2.198993,  -1.480588, -0.067685, -4.244459, 2.893747,
        -1.314979, 2.432068,  1.517765, 2.594067,  4.856674,  4.660547,  2.22629,   1.007614,
        -0.36047,  -3.096027, 2.055742, 1.481168,  -2.907868, -3.947892, 0.934296,  -2.957021},
       {5, {-0.282208, 1.175452, -1.956621, 0.837345, 1.378579, -0.418527}},
       {2, 7, 19, 4, 17, 9, 5, 23, 26, 20},
       {12.761247, 12.372268, 14.429982, 12.149336, 15.092567, 14.426578},
       {10.626453, 12.983872, 14.689674, 17.893503, 19.874579, 17.299588}},
      {"B",
       ToyB(),
       {-1.160819, 3.409918,  1.848099,  1.834937, -2.670206, -1.368168, -4.979111, -0.736538,
        -0.389968, 5.956498,  -1.074028, 4.817346, 1.494057,  1.169611,  -4.047935, 1.510662,
        -1.426111, 1.191067,  0.573751,  2.176363, 2.93815,   0.47324,   -0.518893, -0.612473,
        0.487873,  -1.236632, 0.615763,  -0.04859, -1.220437, -1.754536, 0.073904,  -2.107503},
       {5, {-2.158181, 0.432735, -1.643041, 3.339686, 0.245189, -3.509642}},
       {29, 25, 6, 10, 12, 11, 5, 23, 16, 9},
       {7.904004, 11.092018, 10.867613},
       {7.473021, 10.52624, 10.928818}},
      {"G3",
       ToyG3(),
       {1.4101602, 1.815968, -2.7813508, 3.3230783, 1.0245578, 1.5295075, -2.1292929, 1.7685613},
       {0, {0.7589911, -2.0680427, 3.0006371, 0.2292232, 1.3745999, 1.0008715}},
       {12, 7, 19, 14, 18, 11, 5, 5, 17, 21},
       {},
       {}}};
}

class ToyTest : public testing::TestWithParam<Golden> {};
INSTANTIATE_TEST_SUITE_P(Toys, ToyTest, testing::ValuesIn(Goldens()),
                         [](const auto& info) { return info.param.name; });

TEST_P(ToyTest, AgreesWithTheGoldenVectors) {
  const Golden& golden = GetParam();
  const auto checkpoint = FillToy(golden.spec);
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks");
    ForwardHarness harness(*checkpoint, ranks, Fp32());
    const auto logits = harness.Whole(kIds);
    for (size_t i = 0; i < golden.last.size(); ++i) {
      EXPECT_NEAR(logits.back()[i], golden.last[i], kTolerance) << i;
    }
    for (size_t i = 0; i < golden.other.second.size(); ++i) {
      EXPECT_NEAR(logits[golden.other.first][i], golden.other.second[i], kTolerance) << i;
    }
    for (size_t t = 0; t < kIds.size(); ++t) {
      EXPECT_EQ(std::max_element(logits[t].begin(), logits[t].end()) - logits[t].begin(),
                golden.argmax[t])
          << t;
    }
  }
}

TEST_P(ToyTest, TheStreamAfterEachLayer) {
  const Golden& golden = GetParam();
  const auto checkpoint = FillToy(golden.spec);
  ForwardHarness harness(*checkpoint, 1, Fp32());
  std::map<std::string, std::vector<double>> norms;  // name -> L2 per row; written on the stream
  harness.runner(0).set_probe(
      [&](std::string_view name, const float* data, int64_t rows, int64_t width) {
        std::vector<double>& out = norms[std::string(name)];
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t c = 0; c < width; ++c) {
            sum += double{data[r * width + c]} * data[r * width + c];
          }
          out.push_back(std::sqrt(sum));
        }
      });
  harness.Whole(kIds);
  for (size_t i = 0; i < golden.l2_last.size(); ++i) {
    const auto& rows = norms["layers." + std::to_string(i) + ".output"];
    ASSERT_EQ(rows.size(), kIds.size());
    EXPECT_NEAR(rows.back(), golden.l2_last[i], kTolerance) << i;
    EXPECT_NEAR(rows.front(), golden.l2_first[i], kTolerance) << i;
  }
  EXPECT_EQ(norms["logits"].size(), kIds.size());
}

TEST_P(ToyTest, CuttingTheBatchChangesNoBit) {
  const auto checkpoint = FillToy(GetParam().spec);
  std::mt19937 rng(1);
  std::vector<std::vector<TokenId>> sequences(3);
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (size_t i = 0; i < 41 + 7 * s; ++i) sequences[s].push_back(static_cast<int>(rng() % 32));
  }
  for (const ComputeType compute : {ComputeType::kFp32, ComputeType::kBf16}) {
    RunnerOptions options = Fp32();
    options.compute = compute;
    ForwardHarness harness(*checkpoint, 1, options);
    std::vector<std::vector<std::vector<float>>> alone;
    for (const auto& s : sequences) alone.push_back(harness.Whole(s));

    // Random chunks of all three at once: prefill and decode rows side by side.
    harness.Start(sequences);
    std::vector<size_t> at(3);
    while (at[0] + at[1] + at[2] < 41 + 48 + 55) {
      std::vector<Chunk> chunks;
      for (int s = 0; s < 3; ++s) {
        const auto left = static_cast<int>(sequences[s].size() - at[s]);
        const int len = std::min<int>(left, rng() % 3 == 0 ? 1 : static_cast<int>(rng() % 19));
        if (len > 0) chunks.push_back({s, len});
      }
      if (chunks.empty()) continue;
      const auto logits = harness.Step(chunks);
      size_t row = 0;
      for (const Chunk& chunk : chunks) {
        for (int i = 0; i < chunk.len; ++i, ++row) {
          ASSERT_EQ(logits[row], alone[chunk.sequence][at[chunk.sequence] + i])
              << "sequence " << chunk.sequence << " token " << at[chunk.sequence] + i;
        }
        at[chunk.sequence] += chunk.len;
      }
    }
    // And the number of threads. The arithmetic is pinned: "auto" is timed, and may differ.
    options.threads = 1;
    options.arith = harness.runner(0).resolved_arith();
    ForwardHarness single(*checkpoint, 1, options);
    EXPECT_TRUE(single.Whole(sequences[2]) == alone[2]);
  }
}

TEST_P(ToyTest, TokensNobodyAskedAboutChangeNothing) {
  const auto checkpoint = FillToy(GetParam().spec);
  std::vector<TokenId> a, b;
  for (int i = 0; i < 37; ++i) a.push_back((i * 11 + 3) % 32);
  for (int i = 0; i < 23; ++i) b.push_back((i * 7 + 1) % 32);
  for (const int ranks : {1, 2}) {
    ForwardHarness harness(*checkpoint, ranks, Fp32());
    const auto alone_a = harness.Whole(a), alone_b = harness.Whole(b);
    harness.Start({a, b});
    EXPECT_TRUE(harness.Step({{0, 20}, {1, 5}}, [](int) { return false; }).empty());
    // Tokens 20 to 36 of a, then 5 to 22 of b: the third and fourth of a, all but one of b.
    const auto some = harness.Step({{0, 17}, {1, 18}},
                                   [](int t) { return t == 2 || t == 3 || (t >= 17 && t != 20); });
    ASSERT_EQ(some.size(), 2u + 17u);
    EXPECT_EQ(some[0], alone_a[22]);
    EXPECT_EQ(some[1], alone_a[23]);
    for (int t = 5, row = 2; t < 23; ++t) {
      if (t == 8) continue;
      EXPECT_EQ(some[row++], alone_b[t]) << t;
    }
  }
}

TEST_P(ToyTest, LogitsInSlicesAreTheSame) {
  const auto checkpoint = FillToy(GetParam().spec);
  RunnerOptions options = Fp32();
  ForwardHarness whole(*checkpoint, 1, options);
  options.max_logits_rows = 3;
  ForwardHarness slices(*checkpoint, 1, options);
  EXPECT_TRUE(whole.Whole(kIds) == slices.Whole(kIds));
}

TEST_P(ToyTest, RanksHoldTheirShareAndAgree) {
  const auto checkpoint = FillToy(GetParam().spec);
  ForwardHarness one(*checkpoint, 1, Fp32()), four(*checkpoint, 4, Fp32(1));
  std::vector<TokenId> ids;
  for (int i = 0; i < 50; ++i) ids.push_back((i * 13 + 5) % 32);
  const auto a = one.Whole(ids), b = four.Whole(ids);
  for (size_t t = 0; t < ids.size(); ++t) {
    const auto pa = LogSoftmax(a[t]), pb = LogSoftmax(b[t]);
    // Each may err by kTolerance, in opposite directions.
    for (size_t i = 0; i < pa.size(); ++i) {
      ASSERT_NEAR(pa[i], pb[i], 2 * kTolerance) << t << " " << i;
    }
  }
  for (int r = 0; r < 4; ++r) {
    EXPECT_LT(four.runner(r).weights_bytes(), one.runner(0).weights_bytes());
  }
}

TEST(RunnerTest, RefusesWhatItCannotRun) {
  const auto checkpoint = FillToy(ToyA());
  const auto plan = PlanShards(checkpoint->spec(), 1);
  auto comms = CreateInprocCommunicators(1);
  RunnerOptions options = Fp32();
  options.compute = ComputeType::kInt8;
  auto runner = ModelRunner::Load(*checkpoint, plan->ranks[0], options, *comms[0], nullptr);
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(runner.status().message()).find("no quantised tensor"), std::string::npos);

  options = Fp32();
  options.arith = "abacus";
  runner = ModelRunner::Load(*checkpoint, plan->ranks[0], options, *comms[0], nullptr);
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kInvalidArgument);

  MemoryCheckpoint empty(ToyA());
  runner = ModelRunner::Load(empty, plan->ranks[0], Fp32(), *comms[0], nullptr);
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(runner.status().message()).find("embed_tokens.weight is missing"),
            std::string::npos);
}

TEST(RunnerTest, RefusesGeometryItCannotCompute) {
  auto comms = CreateInprocCommunicators(1);
  const auto refused = [&](auto change) {
    ModelSpec spec = ToyB();
    change(spec);
    const auto checkpoint = FillToy(spec);
    const auto plan = PlanShards(spec, 1);
    if (!plan.ok()) return plan.status().code() == absl::StatusCode::kInvalidArgument;
    const auto runner = ModelRunner::Load(*checkpoint, plan->ranks[0], Fp32(), *comms[0], nullptr);
    return runner.status().code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused([](ModelSpec&) {}));
  EXPECT_TRUE(refused([](ModelSpec& s) { s.layers[1].head_dim = 1026; }));
  EXPECT_TRUE(refused([](ModelSpec& s) { s.layers[1].head_dim = 7; }));
  EXPECT_TRUE(refused([](ModelSpec& s) { s.layers[2].rope.rotated_pairs = 9; }));
  EXPECT_TRUE(refused([](ModelSpec& s) { s.layers[0].kv_heads = 3; }));
  EXPECT_TRUE(refused([](ModelSpec& s) { s.moe.top_k = 7; }));
}

TEST(RunnerTest, AnEmptyStepIsFine) {
  for (const ModelSpec& spec : {ToyA(), ToyB()}) {
    const auto checkpoint = FillToy(spec);
    ForwardHarness harness(*checkpoint, 2, Fp32());
    harness.Start({{1, 2, 3}});
    EXPECT_TRUE(harness.Step({}).empty());
    EXPECT_EQ(harness.Step({{0, 0}, {0, 3}}).size(), 3u);
  }
}

TEST(RunnerTest, RefusesABatchThatContradictsItself) {
  const auto checkpoint = FillToy(ToyB());
  ForwardHarness harness(*checkpoint, 1, Fp32());
  ModelRunner& runner = harness.runner(0);
  const std::vector<PageId> table = {PageId{1}}, outside = {PageId{64}};
  HostBatch good;
  good.token_ids = {1, 2};
  good.positions = {0, 1};
  good.seq_begin = {0, 2};
  good.context_len = {2};
  good.page_tables = {{{&table}, {&table}}};
  good.logits_index = {1};
  ASSERT_TRUE(runner.Forward(good).ok());
  const auto refused = [&](auto change) {
    HostBatch bad = good;
    change(bad);
    return runner.Forward(bad).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](HostBatch& b) { b.positions = {0, 2}; }));
  EXPECT_TRUE(refused([](HostBatch& b) { b.positions = {15, 16}, b.context_len = {17}; }));
  EXPECT_TRUE(refused([](HostBatch& b) { b.context_len = {3}; }));
  EXPECT_TRUE(refused([](HostBatch& b) { b.seq_begin = {0, 1}; }));
  EXPECT_TRUE(refused([](HostBatch& b) { b.logits_index = {2}; }));
  EXPECT_TRUE(refused([](HostBatch& b) { b.logits_index = {1, 0}; }));
  EXPECT_TRUE(refused([&](HostBatch& b) { b.page_tables[1] = {&outside}; }));
  EXPECT_TRUE(refused([](HostBatch& b) {
    b.token_ids.assign(65, 1);
    b.positions.resize(65);
  }));
  ASSERT_TRUE(runner.stream().Synchronize().ok());
}

}  // namespace
}  // namespace lapidary
