// Gathers one generation's events and prints them: as one JSON object for scripts, or as text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lapidary/v1/lapidary.pb.h"

namespace lapidary {

// One choice, in full.
struct CollectedChoice {
  std::string text;
  std::vector<uint32_t> token_ids;
  std::vector<v1::TokenScore> scores;
  std::string finish_reason;
  std::string stop;
};

class GenerationCollector {
 public:
  explicit GenerationCollector(uint32_t choices) : choices_(choices == 0 ? 1 : choices) {}
  void Add(const v1::GenerateResponse& event, absl::Time now);

  // The promised object: text, token_ids, logprobs, top_logprobs, prompt_logprobs, finish_reason,
  // usage; with several choices, the first one's fields and all of them under "choices". Fields
  // that were not asked for are null.
  std::string ToJson(bool with_logprobs, bool with_prompt_logprobs) const;
  // "58 tokens in 0.61 s: 95.1 tokens/s, first after 42 ms".
  std::string Summary(absl::Time start) const;

  const std::vector<CollectedChoice>& choices() const { return choices_; }

 private:
  std::vector<CollectedChoice> choices_;
  std::vector<v1::TokenScore> prompt_scores_;
  v1::Usage usage_;
  std::string request_id_;
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time last_token_ = absl::InfinitePast();
};

}  // namespace lapidary
