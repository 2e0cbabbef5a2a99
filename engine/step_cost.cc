#include "engine/step_cost.h"

#include <algorithm>
#include <limits>

namespace lapidary {

namespace {
constexpr double kKeep = 1 - 1.0 / 32;  // of what was known, at each step that teaches
// The slope of the line is not trusted when the numbers of rows hardly differ: a variance of this
// share of the squared mean halves it. The line still passes through the mean.
constexpr double kSlopeDoubt = 1e-3;
}  // namespace

void StepCost::Observe(int32_t decode_rows, int32_t prompt_tokens, double seconds) {
  if (!(seconds > 0) || decode_rows + prompt_tokens <= 0) return;  // also NaN
  if (prompt_tokens == 0) {
    const double rows = decode_rows;
    steps_ = steps_ * kKeep + 1;
    rows_ = rows_ * kKeep + rows;
    rows2_ = rows2_ * kKeep + rows * rows;
    seconds_ = seconds_ * kKeep + seconds;
    rows_seconds_ = rows_seconds_ * kKeep + rows * seconds;
  } else {
    prompt_tokens_ = prompt_tokens_ * kKeep + prompt_tokens;
    prompt_seconds_ = prompt_seconds_ * kKeep + std::max(seconds - DecodeSeconds(decode_rows), 0.0);
  }
  all_tokens_ = all_tokens_ * kKeep + decode_rows + prompt_tokens;
  all_seconds_ = all_seconds_ * kKeep + seconds;
}

double StepCost::DecodeSeconds(int32_t rows) const {
  if (steps_ == 0) return 0;
  const double mean_rows = rows_ / steps_, mean_seconds = seconds_ / steps_;
  const double variance = std::max(rows2_ / steps_ - mean_rows * mean_rows, 0.0);
  const double covariance = rows_seconds_ / steps_ - mean_rows * mean_seconds;
  const double doubt = kSlopeDoubt * mean_rows * mean_rows;
  // More rows never cost less, and a step of none never less than nothing.
  const double slope = std::clamp(covariance / (variance + doubt), 0.0, mean_seconds / mean_rows);
  return mean_seconds + slope * (rows - mean_rows);
}

double StepCost::Predict(int32_t decode_rows, int32_t prompt_tokens) const {
  const double token = prompt_tokens_ > 0 ? prompt_seconds_ / prompt_tokens_ : 0;
  return DecodeSeconds(decode_rows) + token * prompt_tokens;
}

int32_t StepCost::PromptTokensWithin(double target_seconds, int32_t decode_rows) const {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  const double left = target_seconds - DecodeSeconds(decode_rows);
  if (left <= 0) return 0;
  if (left * prompt_tokens_ >= prompt_seconds_ * double{kMost}) return kMost;
  return static_cast<int32_t>(left * prompt_tokens_ / prompt_seconds_);
}

double StepCost::tokens_per_second() const {
  return all_seconds_ > 0 ? all_tokens_ / all_seconds_ : 0;
}

}  // namespace lapidary
