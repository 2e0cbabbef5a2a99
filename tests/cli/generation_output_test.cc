#include "cli/generation_output.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lapidary {
namespace {

v1::GenerateResponse DeltaEvent(uint32_t choice, const std::string& text,
                                const std::vector<uint32_t>& ids, float logprob) {
  v1::GenerateResponse event;
  v1::Delta& delta = *event.mutable_delta();
  delta.set_choice(choice);
  delta.set_text(text);
  for (const uint32_t id : ids) {
    delta.add_token_ids(id);
    v1::TokenScore& score = *delta.add_scores();
    score.set_id(id);
    score.set_logprob(logprob);
    v1::TokenAlternative& top = *score.add_top();
    top.set_id(id);
    top.set_token("t" + std::to_string(id));
    top.set_logprob(logprob);
  }
  return event;
}

v1::GenerateResponse Finished(uint32_t choice, v1::FinishReason reason) {
  v1::GenerateResponse event;
  event.mutable_choice_finished()->set_choice(choice);
  event.mutable_choice_finished()->set_reason(reason);
  return event;
}

TEST(GenerationCollector, WritesThePromisedObject) {
  GenerationCollector collector(1);
  v1::GenerateResponse prompt;
  prompt.mutable_prompt_scores()->add_scores()->set_logprob(-2.5f);
  collector.Add(prompt, absl::UnixEpoch());
  collector.Add(DeltaEvent(0, "ab", {5, 7}, -0.5f), absl::UnixEpoch());
  collector.Add(DeltaEvent(0, "c", {9}, -1.0f), absl::UnixEpoch());
  collector.Add(Finished(0, v1::FINISH_REASON_LENGTH), absl::UnixEpoch());
  v1::GenerateResponse usage;
  usage.mutable_usage()->set_prompt_tokens(2);
  usage.mutable_usage()->set_completion_tokens(3);
  usage.mutable_usage()->set_total_tokens(5);
  usage.mutable_usage()->set_cached_prompt_tokens(1);
  collector.Add(usage, absl::UnixEpoch());

  const nlohmann::json got = nlohmann::json::parse(collector.ToJson(true, true));
  EXPECT_EQ(got["text"], "abc");
  EXPECT_EQ(got["token_ids"], (std::vector<int>{5, 7, 9}));
  EXPECT_EQ(got["logprobs"], (std::vector<double>{-0.5, -0.5, -1.0}));
  ASSERT_EQ(got["top_logprobs"].size(), 3u);
  EXPECT_EQ(got["top_logprobs"][2][0]["id"], 9);
  EXPECT_EQ(got["top_logprobs"][2][0]["token"], "t9");
  ASSERT_EQ(got["prompt_logprobs"].size(), 2u);
  EXPECT_TRUE(got["prompt_logprobs"][0].is_null());
  EXPECT_EQ(got["prompt_logprobs"][1], -2.5);
  EXPECT_EQ(got["finish_reason"], "length");
  EXPECT_EQ(got["usage"]["total_tokens"], 5);
  EXPECT_EQ(got["usage"]["cached_prompt_tokens"], 1);
}

TEST(GenerationCollector, LeavesOutWhatWasNotAskedFor) {
  GenerationCollector collector(1);
  collector.Add(DeltaEvent(0, "a", {5}, -0.5f), absl::UnixEpoch());
  const nlohmann::json got = nlohmann::json::parse(collector.ToJson(false, false));
  EXPECT_TRUE(got["logprobs"].is_null());
  EXPECT_TRUE(got["top_logprobs"].is_null());
  EXPECT_TRUE(got["prompt_logprobs"].is_null());
}

TEST(GenerationCollector, KeepsChoicesApartAndSurvivesBadBytes) {
  GenerationCollector collector(2);
  collector.Add(DeltaEvent(1, "one", {1}, -1), absl::UnixEpoch());
  collector.Add(DeltaEvent(0, "z\xff", {0}, -1), absl::UnixEpoch());
  collector.Add(DeltaEvent(7, "nobody", {2}, -1), absl::UnixEpoch());
  collector.Add(Finished(1, v1::FINISH_REASON_STOP), absl::UnixEpoch());
  const nlohmann::json got = nlohmann::json::parse(collector.ToJson(false, false));
  ASSERT_EQ(got["choices"].size(), 2u);
  EXPECT_EQ(got["choices"][1]["text"], "one");
  EXPECT_EQ(got["choices"][1]["finish_reason"], "stop");
  EXPECT_EQ(got["text"], "z\xEF\xBF\xBD");
}

}  // namespace
}  // namespace lapidary
