// Which part of every weight a rank of a tensor-parallel group holds.
//
// q heads split contiguously; a rank holds every kv head that its q heads read, so kv heads are
// replicated only where needed. MLP widths and vocabulary rows split in uneven parts of whole
// units; experts are whole and contiguous. Refused only with fewer q heads than ranks.
#pragma once
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "model/model_spec.h"

namespace lapidary {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// `total` items into `parts` contiguous ranges of whole units (the last may be ragged); sizes
// differ by at most one unit. Early parts get the larger share. A part may be empty.
Range SplitUnits(int64_t total, int64_t unit, int parts, int index);

struct LayerShard {
  Range q_heads;
  Range kv_heads;  // the ones q_heads read; of the owner's heads on KV-shared layers
  Range mlp;       // columns of gate and up, rows of down's input
  Range experts;
};

// One rank's share.
struct RankShard {
  RankId rank;
  int size = 1;  // ranks in the group
  Range vocab;   // rows of embedding and head
  std::vector<LayerShard> layers;
};

struct ShardPlan {
  int size = 1;
  std::vector<RankShard> ranks;
};

// Units: MLP widths are split at multiples of 32 (a packed panel; a block of a quantised file), of
// 16, 8 ... 1 where 32 would leave a rank empty and the file has no blocks
// (ModelSpec::weight_block). Vocabulary rows likewise; blocks do not matter to them. Query heads
// are split singly: where a head ends inside a block, that share of the output projection can not
// keep the file's blocks. INVALID_ARGUMENT when a layer has fewer query heads than there are ranks.
absl::StatusOr<ShardPlan> PlanShards(const ModelSpec& spec, int size);

}  // namespace lapidary
