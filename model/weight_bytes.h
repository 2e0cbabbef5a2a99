// What a rank's share of a model takes in memory, from shapes and stored formats alone.
//
// Weights are counted as the CPU backend packs them: 32 output columns a panel, the inner dimension
// padded to 32. A matrix of the forward pass is one or several tensors stacked along the output:
//   qkv        q, k, v rows of the rank's heads (k and v on layers that own KV; no v when K = V)
//   output     columns of o_proj of the rank's q heads
//   gate_up    gate and up rows of the rank's MLP share;  down: its columns
//   experts    gate_up and down of each of the rank's experts, each its own matrix
//   whole on every rank: router (always fp32), the PLE gate, projection and model projection
//   embedding  the rank's rows: gather and head read one copy
// Tensors of one matrix that the file stores in different formats are packed apart, neighbours of
// the same format together. Norms, scales and router vectors are fp32, whole on every rank. The PLE
// table stays mapped and does not count.
//
// Bytes of 32 columns x 32 inputs, by compute type and stored format:
//   fp32  4096 whatever is stored
//   bf16  2048 whatever is stored
//   int8  Q8_0 1088, Q6_K 1152, Q4_0 576, Q4_K 640, Q5_0 704, Q5_K 768; F32, F16, BF16: 2048
//   (bf16),
//         and so an output projection whose share begins or ends inside a block
// Without a checkpoint everything counts as stored in bf16.
#pragma once
#include <cstdint>

#include "common/base/dtype.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"
#include "model/shard_plan.h"

namespace lapidary {

int64_t PackedWeightBytes(const ModelSpec& spec, const RankShard& shard,
                          const Checkpoint* checkpoint, ComputeType compute);

// How keys and values are stored. The format counts for global layers of K = V models alone.
struct KvStorage {
  KvFormat format = KvFormat::kFolded;
  KvType type = KvType::kBf16;
};

// Keys and values of one token in all layers of a family that own KV, on this rank: a sixteenth of
// a page of the CPU backend where no column is padded (no released size pads).
int64_t KvBytesPerToken(const ModelSpec& spec, const RankShard& shard, KvFamily family,
                        const KvStorage& storage);

}  // namespace lapidary
