// What a request changes in its logits before temperature: bias, suppressed tokens, stop ids before
// min_tokens, and penalties. Few tokens of many, so they are a list.
#pragma once
#include <cstdint>
#include <vector>

#include "model/shard_plan.h"
#include "worker/sampler.h"

namespace lapidary {

struct LogitEdit {
  int64_t column = 0;  // in the shard
  float raw = 0;       // before
  float value = 0;     // after
};

// The edits of `row` among the tokens of a shard whose logits are `logits`, by ascending column.
// Order on one token: bias, then penalties; a token that may not be sampled is -inf whatever else.
std::vector<LogitEdit> MakeEdits(const SampleRow& row, Range vocab, const float* logits);

void ApplyEdits(const std::vector<LogitEdit>& edits, float* logits);

// The model's logit of a column of a row whose edits have been applied.
float RawLogit(const std::vector<LogitEdit>& edits, const float* logits, int64_t column);

}  // namespace lapidary
