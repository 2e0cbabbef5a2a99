// Toys whose matrices are quantised blocks.
#pragma once
#include <memory>

#include "model/model_spec.h"
#include "tests/worker/toy_model.h"

namespace lapidary {

// Toys widened until quantised rows exist: M 64, MLP 96, heads of 16 and 32 (or 12: a rank's
// columns of o_proj then cut through blocks).
ModelSpec WidenedToy(ModelSpec spec, int head_dim);

// A toy's tensors, the matrices replaced by blocks, each the next of the 32-block formats.
std::unique_ptr<MemoryCheckpoint> QuantizedToy(const ModelSpec& spec);

}  // namespace lapidary
