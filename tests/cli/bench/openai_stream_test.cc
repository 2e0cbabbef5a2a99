#include "cli/bench/openai_stream.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lapidary {
namespace {

using Json = nlohmann::json;

BenchAnswer Read(const std::vector<std::string>& events) {
  BenchAnswer answer;
  CompletionReader reader;
  for (const std::string& event : events) reader.Read(event, BenchTime(), &answer);
  reader.End(&answer);
  return answer;
}

std::vector<int64_t> Counts(const BenchAnswer& answer) {
  std::vector<int64_t> counts;
  for (const TokenArrival& arrival : answer.arrivals) counts.push_back(arrival.tokens);
  return counts;
}

TEST(CompletionReader, WithoutCountsEachTextIsAToken) {
  const BenchAnswer answer =
      Read({R"({"choices":[{"text":"a"}]})", R"({"choices":[{"text":""}]})",
            R"({"choices":[{"text":"b","finish_reason":"length"}]})",
            R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3}})", "[DONE]"});
  EXPECT_EQ(answer.error_kind, "");
  EXPECT_FALSE(answer.exact_counts);
  EXPECT_EQ(Counts(answer), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(answer.Tokens(), 3);
  EXPECT_EQ(answer.text, "ab");
  EXPECT_EQ(answer.finish_reason, "length");
  EXPECT_EQ(answer.prompt_tokens, 3);
}

TEST(CompletionReader, RunningUsageCountsTokens) {  // vLLM, continuous_usage_stats
  const BenchAnswer answer = Read(
      {R"({"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":1}})",
       R"({"choices":[{"text":""}],"usage":{"prompt_tokens":3,"completion_tokens":2}})",
       R"({"choices":[{"text":"b","finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":5}})",
       R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}})", "[DONE]"});
  EXPECT_TRUE(answer.exact_counts);
  EXPECT_EQ(Counts(answer), (std::vector<int64_t>{1, 1, 3}));
  EXPECT_EQ(answer.Tokens(), 5);
}

TEST(CompletionReader, TimingsCountTokens) {  // llama-server, timings_per_token
  const BenchAnswer answer = Read(
      {R"({"choices":[{"text":"a"}],"timings":{"predicted_n":1}})",
       R"({"choices":[{"text":"b"}],"timings":{"predicted_n":3}})",
       R"({"choices":[{"text":"","finish_reason":"length"}],"timings":{"predicted_n":4}})",
       R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4},"timings":{"predicted_n":4}})",
       "[DONE]"});
  EXPECT_TRUE(answer.exact_counts);
  EXPECT_EQ(Counts(answer), (std::vector<int64_t>{1, 2, 1}));
  EXPECT_EQ(answer.completion_tokens, 4);
}

TEST(CompletionReader, ListedIdsCountTokens) {  // vLLM, return_token_ids
  const BenchAnswer answer =
      Read({R"({"choices":[{"text":"a","token_ids":[5,6]}]})",
            R"({"choices":[{"text":"","token_ids":[7],"finish_reason":"length"}]})",
            R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}})", "[DONE]"});
  EXPECT_TRUE(answer.exact_counts);
  EXPECT_EQ(Counts(answer), (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(answer.Tokens(), 3);  // what came, not what the usage claims
}

TEST(CompletionReader, TroubleHasAKind) {
  EXPECT_EQ(Read({R"({"choices":[{"text":"a"}]})"}).error_kind, "CUT OFF");
  EXPECT_EQ(Read({R"({"error":{"message":"out of memory"}})", "[DONE]"}).error_kind,
            "SERVER ERROR");
  EXPECT_EQ(Read({"<html>", "[DONE]"}).error_kind, "NOT JSON");
}

TEST(CompletionReader, EventsOfAnyShapeAreSurvived) {
  for (
      const char* event :
      {"[]", "3", "null", "{}", R"({"choices":3})", R"({"choices":[]})", R"({"choices":[4]})",
       R"({"choices":[{"text":5,"finish_reason":6,"token_ids":7}],"usage":[],"timings":8})",
       R"({"choices":[{"text":null}],"usage":{"completion_tokens":"x"},"timings":{"predicted_n":-5}})"}) {
    const BenchAnswer answer = Read({event, "[DONE]"});
    EXPECT_EQ(answer.Tokens(), 0) << event;
  }
}

TEST(CompletionBody, SaysWhatIsAsked) {
  BenchRequest request;
  request.prompt = {2, 5, 7};
  request.output_tokens = 9;
  request.sampling_seed = 0xffffffffffffffff;
  AskOptions options;
  options.model = "m";
  options.extra_body = R"({"cache_prompt":false,"stream_options":{"continuous_usage_stats":null}})";
  const Json body = Json::parse(CompletionBody(request, options));
  EXPECT_EQ(body["prompt"], Json({2, 5, 7}));
  EXPECT_EQ(body["max_tokens"], 9);
  EXPECT_EQ(body["stream"], true);
  EXPECT_EQ(body["ignore_eos"], true);
  EXPECT_EQ(body["cache_prompt"], false);
  EXPECT_EQ(body["stream_options"], Json({{"include_usage", true}}));
  EXPECT_LT(body["seed"], int64_t{1} << 31);
  EXPECT_TRUE(IsJsonObject("{}"));
  EXPECT_FALSE(IsJsonObject("[]"));
  EXPECT_FALSE(IsJsonObject("{"));
}

}  // namespace
}  // namespace lapidary
