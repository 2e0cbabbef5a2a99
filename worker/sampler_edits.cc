#include "worker/sampler_edits.h"

#include <algorithm>
#include <limits>

#include "kernels/sampling/penalties.h"

namespace lapidary {

namespace {

int32_t CountOf(const std::unordered_map<TokenId, int32_t>& counts, TokenId id) {
  const auto it = counts.find(id);
  return it == counts.end() ? 0 : it->second;
}

}  // namespace

std::vector<LogitEdit> MakeEdits(const SampleRow& row, Range vocab, const float* logits) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const SamplingParams& params = *row.params;
  const bool before_min_tokens = row.generated < params.min_tokens;
  const bool penalized = params.has_penalties() && row.counts != nullptr;

  std::vector<TokenId> touched;
  const auto touch = [&](TokenId id) {
    if (id >= vocab.begin && id < vocab.end) touched.push_back(id);
  };
  for (const auto& bias : params.logit_bias) touch(bias.first);
  for (TokenId id : params.suppressed) touch(id);
  if (before_min_tokens) {
    for (TokenId id : params.stop_ids) touch(id);
  }
  if (penalized) {
    for (const auto& count : row.counts->output) touch(count.first);
    if (params.repetition_penalty != 1.0f) {
      for (const auto& count : row.counts->prompt) touch(count.first);
    }
  }
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());

  std::vector<LogitEdit> edits;
  edits.reserve(touched.size());
  for (TokenId id : touched) {
    LogitEdit edit;
    edit.column = id - vocab.begin;
    edit.raw = edit.value = logits[edit.column];
    edits.push_back(edit);
  }
  const auto at = [&](TokenId id) -> LogitEdit* {
    const auto it = std::lower_bound(touched.begin(), touched.end(), id);
    return it == touched.end() || *it != id ? nullptr : &edits[it - touched.begin()];
  };
  for (const auto& bias : params.logit_bias) {
    if (LogitEdit* edit = at(bias.first)) edit->value += bias.second;
  }
  if (penalized) {
    const Penalties penalties{params.repetition_penalty, params.presence_penalty,
                              params.frequency_penalty};
    for (size_t i = 0; i < touched.size(); ++i) {
      edits[i].value =
          ApplyPenalties(edits[i].value, penalties, CountOf(row.counts->prompt, touched[i]) > 0,
                         CountOf(row.counts->output, touched[i]));
    }
  }
  for (TokenId id : params.suppressed) {
    if (LogitEdit* edit = at(id)) edit->value = kMinusInfinity;
  }
  if (before_min_tokens) {
    for (TokenId id : params.stop_ids) {
      if (LogitEdit* edit = at(id)) edit->value = kMinusInfinity;
    }
  }
  return edits;
}

void ApplyEdits(const std::vector<LogitEdit>& edits, float* logits) {
  for (const LogitEdit& edit : edits) logits[edit.column] = edit.value;
}

float RawLogit(const std::vector<LogitEdit>& edits, const float* logits, int64_t column) {
  const auto it =
      std::lower_bound(edits.begin(), edits.end(), column,
                       [](const LogitEdit& edit, int64_t wanted) { return edit.column < wanted; });
  return it == edits.end() || it->column != column ? logits[column] : it->raw;
}

}  // namespace lapidary
