// What a step costs in seconds, learnt from the steps that were: how long a prompt chunk may be so
// that a step stays under a time target, and how fast the queue moves.
//
// Two models, both with exponential forgetting over the last few dozen steps of their kind:
//   - steps of decode rows alone give a line, seconds = base + row * rows;
//   - what a step with prompts takes beyond that line, divided by its prompt tokens, is the price
//   of
//     a prompt token. Until there was a step of the first kind, all of it.
// Each model learns only from steps that can teach it, so that an hour of decoding does not make it
// forget what a prompt costs. Attention over long contexts makes tokens dearer; that is a drift,
// and followed. Deterministic: the same steps give the same answers.
#pragma once
#include <cstdint>

namespace lapidary {

class StepCost {
 public:
  // One step that was run: rows of one token, and the tokens of longer rows.
  void Observe(int32_t decode_rows, int32_t prompt_tokens, double seconds);

  // Seconds that a step is expected to take; 0 before the first.
  double Predict(int32_t decode_rows, int32_t prompt_tokens) const;
  // The most prompt tokens that a step of so many decode rows is expected to carry within the
  // target; 0 when not even the rows are. The largest int32 before the first prompt.
  int32_t PromptTokensWithin(double target_seconds, int32_t decode_rows) const;
  // Of the last steps; 0 before the first.
  double tokens_per_second() const;

 private:
  double DecodeSeconds(int32_t rows) const;

  // Sums with forgetting, of steps of decode rows alone: 1, rows, rows^2, seconds, rows * seconds.
  double steps_ = 0, rows_ = 0, rows2_ = 0, seconds_ = 0, rows_seconds_ = 0;
  // Of steps with prompts: tokens, and seconds beyond those of their decode rows.
  double prompt_tokens_ = 0, prompt_seconds_ = 0;
  // Of all steps.
  double all_tokens_ = 0, all_seconds_ = 0;
};

}  // namespace lapidary
