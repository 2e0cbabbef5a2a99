// Shards partition everything exactly, whatever the sizes; the released sizes split as published.
#include "model/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "model/config_reader.h"

namespace lapidary {
namespace {

TEST(SplitUnits, CoversTheWholeInEvenParts) {
  for (const int64_t total : {0, 1, 31, 32, 33, 66, 2112, 262144}) {
    for (const int64_t unit : {1, 2, 32}) {
      for (int parts = 1; parts <= 9; ++parts) {
        int64_t at = 0, smallest = total, largest = 0;
        for (int i = 0; i < parts; ++i) {
          const Range part = SplitUnits(total, unit, parts, i);
          EXPECT_EQ(part.begin, at);
          EXPECT_TRUE(part.begin % unit == 0 || part.begin == total);
          at = part.end;
          const int64_t units = (part.size() + unit - 1) / unit;
          smallest = std::min(smallest, units);
          largest = std::max(largest, units);
        }
        EXPECT_EQ(at, total);
        EXPECT_LE(largest - smallest, 1) << total << " in units of " << unit << " by " << parts;
      }
    }
  }
}

// Everything that must hold of any plan.
void CheckPlan(const ModelSpec& spec, const ShardPlan& plan) {
  ASSERT_EQ(std::ssize(plan.ranks), plan.size);
  const auto follows = [](int64_t& at, const Range& range) {
    const bool ok = range.begin == at && range.end >= range.begin;
    at = range.end;
    return ok;
  };
  int64_t vocab = 0;
  for (const RankShard& rank : plan.ranks) {
    EXPECT_TRUE(follows(vocab, rank.vocab));
    EXPECT_EQ(rank.size, plan.size);
    EXPECT_EQ(rank.layers.size(), spec.layers.size());
  }
  EXPECT_EQ(vocab, spec.vocab);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    int64_t q = 0, mlp = 0, experts = 0;
    for (const RankShard& rank : plan.ranks) {
      const LayerShard& shard = rank.layers[i];
      EXPECT_TRUE(follows(q, shard.q_heads));
      EXPECT_TRUE(follows(mlp, shard.mlp));
      EXPECT_TRUE(follows(experts, shard.experts));
      EXPECT_GT(shard.q_heads.size(), 0);
      if (layer.mlp_width >= plan.size && spec.weight_block == 1) {
        EXPECT_GT(shard.mlp.size(), 0);
      }
      EXPECT_TRUE(shard.mlp.begin % spec.weight_block == 0);
      // Exactly the kv heads that the rank's q heads read.
      const int64_t group = layer.q_heads / layer.kv_heads;
      EXPECT_EQ(shard.kv_heads.begin, shard.q_heads.begin / group);
      EXPECT_EQ(shard.kv_heads.end, (shard.q_heads.end - 1) / group + 1);
      // A sharing layer reads what the rank holds of its owner.
      EXPECT_EQ(shard.kv_heads, rank.layers[layer.kv_owner].kv_heads);
    }
    EXPECT_EQ(q, layer.q_heads);
    EXPECT_EQ(mlp, layer.mlp_width);
    EXPECT_EQ(experts, spec.moe.experts);
  }
}

struct Published {
  const char* file;
  int ranks;
  int64_t q, sliding_kv, full_kv;  // heads on each rank
};
class ReleasedSplit : public testing::TestWithParam<Published> {};
INSTANTIATE_TEST_SUITE_P(All, ReleasedSplit,
                         testing::Values(Published{"31b", 2, 16, 8, 2},
                                         Published{"31b", 4, 8, 4, 1}, Published{"31b", 8, 4, 2, 1},
                                         Published{"26b-a4b", 2, 8, 4, 1},
                                         Published{"26b-a4b", 4, 4, 2, 1},
                                         Published{"26b-a4b", 8, 2, 1, 1},
                                         Published{"12b", 2, 8, 4, 1}, Published{"12b", 4, 4, 2, 1},
                                         Published{"12b", 8, 2, 1, 1}, Published{"e4b", 2, 4, 1, 1},
                                         Published{"e4b", 4, 2, 1, 1}, Published{"e4b", 8, 1, 1, 1},
                                         Published{"e2b", 2, 4, 1, 1}, Published{"e2b", 4, 2, 1, 1},
                                         Published{"e2b", 8, 1, 1, 1}));

TEST_P(ReleasedSplit, AsPublished) {
  const Published& want = GetParam();
  const auto config =
      ReadModelConfig(std::string("tests/golden/configs/gemma-4-") + want.file + ".json");
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  const auto plan = PlanShards(spec, want.ranks);
  ASSERT_TRUE(plan.ok()) << plan.status();
  CheckPlan(spec, *plan);
  for (const RankShard& rank : plan->ranks) {
    EXPECT_EQ(rank.vocab.size(), 262144 / want.ranks);
    for (size_t i = 0; i < spec.layers.size(); ++i) {
      const LayerShard& shard = rank.layers[i];
      EXPECT_EQ(shard.q_heads.size(), want.q);
      const bool sliding = spec.layers[i].kind == KvFamily::kSliding;
      EXPECT_EQ(shard.kv_heads.size(), sliding ? want.sliding_kv : want.full_kv);
      EXPECT_EQ(shard.experts.size(), spec.moe.experts / want.ranks);
      // Within one panel of an even split.
      EXPECT_LE(std::abs(shard.mlp.size() - spec.layers[i].mlp_width / want.ranks), 32);
    }
  }
}

TEST(PlanShards, AnyShapeIsPartitioned) {
  std::mt19937 random(20261124);  // any seed; printed by a failure through the trace
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int trial = 0; trial < 300; ++trial) {
    SCOPED_TRACE(trial);
    ModelSpec spec;
    spec.hidden = pick(1, 99);
    spec.vocab = pick(1, 700);
    spec.moe.experts = pick(0, 1) * pick(1, 9);
    spec.weight_block = pick(0, 3) == 0 ? 32 : 1;
    const int layers = pick(1, 5);
    for (int i = 0; i < layers; ++i) {
      LayerSpec layer;
      layer.kind = i % 2 == 0 ? KvFamily::kSliding : KvFamily::kGlobal;
      layer.kv_owner = i;
      if (i >= 2 && pick(0, 1) == 0) {  // shares the KV of the layer two before
        layer = spec.layers[i - 2];
      } else {
        layer.kv_heads = pick(1, 5);
        layer.q_heads = layer.kv_heads * pick(1, 6);
        layer.head_dim = 2 * pick(1, 40);
      }
      layer.mlp_width = spec.weight_block * pick(1, 200);
      spec.layers.push_back(layer);
    }
    for (int ranks = 1; ranks <= 8; ++ranks) {
      const auto plan = PlanShards(spec, ranks);
      int fewest = 1000;
      for (const LayerSpec& layer : spec.layers) fewest = std::min(fewest, layer.q_heads);
      ASSERT_EQ(plan.ok(), fewest >= ranks) << plan.status();
      if (plan.ok()) {
        CheckPlan(spec, *plan);
      } else {
        EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
      }
    }
  }
}

TEST(PlanShards, TinyWidthsLeaveNoRankEmpty) {
  ModelSpec spec;
  spec.hidden = 10;
  spec.vocab = 17;
  spec.layers = {{.q_heads = 8, .kv_heads = 1, .head_dim = 4, .mlp_width = 9}};
  const auto plan = PlanShards(spec, 8);
  ASSERT_TRUE(plan.ok());
  for (const RankShard& rank : plan->ranks) {
    EXPECT_GT(rank.layers[0].mlp.size(), 0);
    EXPECT_GT(rank.vocab.size(), 0);
  }
}

TEST(PlanShards, RefusesMoreRanksThanQueryHeads) {
  ModelSpec spec;
  spec.hidden = 10;
  spec.vocab = 17;
  spec.layers = {{.q_heads = 4, .kv_heads = 2, .head_dim = 4, .mlp_width = 9}};
  EXPECT_TRUE(PlanShards(spec, 4).ok());
  const absl::Status status = PlanShards(spec, 5).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("4 query heads, too few for 5 ranks: use at most 4"));
  EXPECT_FALSE(PlanShards(spec, 0).ok());
}

}  // namespace
}  // namespace lapidary
