#include "cli/bench/check.h"

#include <gtest/gtest.h>

#include <functional>

namespace lapidary {
namespace {

BenchRequest Request() {
  BenchRequest request;
  request.prompt = {2, 5, 7};
  request.output_tokens = 4;
  return request;
}

BenchAnswer Good() {
  BenchAnswer answer;
  answer.finish_reason = "length";
  for (int i = 0; i < 4; ++i) answer.arrivals.push_back({BenchTime(), 1});
  answer.prompt_tokens = 3;
  answer.completion_tokens = 4;
  return answer;
}

std::string Kind(const std::function<void(BenchAnswer&)>& spoil, CheckOptions options = {}) {
  BenchAnswer answer = Good();
  spoil(answer);
  return CheckAnswer(Request(), answer, options).kind;
}

TEST(Check, AGoodAnswerIsGood) {
  EXPECT_EQ(Kind([](BenchAnswer&) {}), "");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.arrivals = {{BenchTime(), 4}}; }), "");
}

TEST(Check, EveryWayToBeWrongHasItsName) {
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.error_kind = "UNAVAILABLE"; }), "UNAVAILABLE");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.finish_reason = ""; }), "no finish reason");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.arrivals.pop_back(); }), "too few tokens");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.arrivals.clear(); }), "too few tokens");
  EXPECT_EQ(Kind([](BenchAnswer& a) {
              a.arrivals.push_back({BenchTime(), 1});
            }),
            "too many tokens");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.finish_reason = "stop"; }), "wrong finish reason");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.completion_tokens.reset(); }), "no usage");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.completion_tokens = 3; }), "usage disagrees");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.prompt_tokens = 4; }), "wrong prompt length");
}

TEST(Check, AnEarlyStopIsGoodOnlyWhereTheModelMayStop) {
  const auto stop = [](BenchAnswer& a) {
    a.arrivals.pop_back();
    a.completion_tokens = 3;
    a.finish_reason = "stop";
  };
  EXPECT_EQ(Kind(stop), "too few tokens");
  EXPECT_EQ(Kind(stop, {.ignore_eos = false}), "");
  const auto length = [](BenchAnswer& a) {
    a.arrivals.pop_back();
    a.completion_tokens = 3;
  };
  EXPECT_EQ(Kind(length, {.ignore_eos = false}), "too few tokens");
}

// A server that does not count its messages: the usage alone is not believed.
TEST(Check, UncountedMessagesMustBeAsManyAsTheUsageSays) {
  const auto merged = [](BenchAnswer& a) {
    a.exact_counts = false;
    a.arrivals.pop_back();
  };
  EXPECT_EQ(Kind(merged), "uncounted tokens");
  EXPECT_EQ(Kind(merged, {.loose_counts = true}), "");
  EXPECT_EQ(Kind([](BenchAnswer& a) { a.exact_counts = false; }), "");
  const auto honest = [](BenchAnswer& a) {
    a.exact_counts = false;
    a.arrivals.pop_back();
    a.completion_tokens = 3;
  };
  EXPECT_EQ(Kind(honest, {.loose_counts = true}), "too few tokens");
}

}  // namespace
}  // namespace lapidary
