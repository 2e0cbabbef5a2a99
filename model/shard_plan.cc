#include "model/shard_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

constexpr int64_t kPanel = 32;  // columns of packed weights

// The largest unit up to a panel that leaves no rank empty.
int64_t UnitFor(int64_t total, int ranks) {
  int64_t unit = kPanel;
  while (unit > 1 && (total + unit - 1) / unit < ranks) unit /= 2;
  return unit;
}

// KV heads that query heads [q.begin, q.end) read.
Range KvHeadsFor(const Range& q, const LayerSpec& layer) {
  const int64_t queries_per_kv = layer.q_heads / layer.kv_heads;
  return {q.begin / queries_per_kv, (q.end + queries_per_kv - 1) / queries_per_kv};
}

}  // namespace

Range SplitUnits(int64_t total, int64_t unit, int parts, int index) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t each = units / parts, larger = units % parts;  // the first `larger` get one more
  const int64_t begin = each * index + std::min<int64_t>(index, larger);
  const int64_t end = begin + each + (index < larger ? 1 : 0);
  return {std::min(begin * unit, total), std::min(end * unit, total)};
}

absl::StatusOr<ShardPlan> PlanShards(const ModelSpec& spec, int size) {
  if (size < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("a group of %d ranks", size));
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const int heads = spec.layers[i].q_heads;
    if (heads < size) {
      return absl::InvalidArgumentError(
          absl::StrFormat("layer %d has %d query heads, too few for %d ranks: use at most %d", i,
                          heads, size, heads));
    }
  }
  ShardPlan plan;
  plan.size = size;
  for (int r = 0; r < size; ++r) {
    RankShard rank;
    rank.rank = RankId{r};
    rank.size = size;
    rank.vocab = SplitUnits(spec.vocab, UnitFor(spec.vocab, size), size, r);
    for (const LayerSpec& layer : spec.layers) {
      LayerShard shard;
      shard.q_heads = SplitUnits(layer.q_heads, 1, size, r);
      shard.kv_heads = KvHeadsFor(shard.q_heads, layer);
      const int64_t unit =
          spec.weight_block > 1 ? spec.weight_block : UnitFor(layer.mlp_width, size);
      shard.mlp = SplitUnits(layer.mlp_width, unit, size, r);
      shard.experts = SplitUnits(spec.moe.experts, 1, size, r);
      rank.layers.push_back(shard);
    }
    plan.ranks.push_back(std::move(rank));
  }
  return plan;
}

}  // namespace lapidary
