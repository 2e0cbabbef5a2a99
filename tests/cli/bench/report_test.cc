#include "cli/bench/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lapidary {
namespace {

using Json = nlohmann::json;

BenchTime At(double seconds) {
  return BenchTime() +
         std::chrono::duration_cast<BenchTime::duration>(std::chrono::duration<double>(seconds));
}

BenchReport Report() {
  BenchReport report;
  report.kind = "lapidary";
  report.address = "127.0.0.1:5";
  report.model = "m";
  report.load = {.requests = 2, .concurrency = 2};
  report.result.sent = 2;
  for (int i = 0; i < 2; ++i) {
    BenchAnswer answer;
    answer.started = At(1);
    answer.finished = At(3);
    answer.arrivals = {{At(1.5), 1}, {At(2), 1}, {At(3), 2}};
    answer.prompt_tokens = 10;
    answer.completion_tokens = 4;
    answer.cached_tokens = 3;
    report.result.tally.Add(answer, {});
  }
  return report;
}

TEST(Report, JsonHasRatesAndMilliseconds) {
  const Json json = Json::parse(ReportJson(Report()));
  EXPECT_EQ(json["requests"], Json({{"sent", 2}, {"good", 2}, {"failed", 0}}));
  EXPECT_DOUBLE_EQ(json["duration_s"], 2);
  EXPECT_DOUBLE_EQ(json["throughput"]["output_tokens_per_s"], 4);
  EXPECT_DOUBLE_EQ(json["throughput"]["total_tokens_per_s"], 14);
  EXPECT_DOUBLE_EQ(json["throughput"]["requests_per_s"], 1);
  EXPECT_DOUBLE_EQ(json["ttft_ms"]["p50"], 500);
  EXPECT_DOUBLE_EQ(json["token_gap_ms"]["max"], 500);
  EXPECT_DOUBLE_EQ(json["message_gap_ms"]["max"], 1000);
  EXPECT_DOUBLE_EQ(json["latency_ms"]["p99"], 2000);
  EXPECT_EQ(json["tokens"]["cached_prompt"], 6);
  EXPECT_EQ(json["tokens"]["messages"], 6);
  EXPECT_TRUE(json["verify"].is_null());
  EXPECT_TRUE(json["errors"].empty());
  EXPECT_EQ(ReportProblem(Report()), "");
}

TEST(Report, WithoutAGoodAnswerDistributionsAreNull) {
  BenchReport report;
  report.result.tally.Add({}, {.kind = "HTTP 404", .detail = "request 0: \xff not here"});
  const Json json = Json::parse(ReportJson(report));
  EXPECT_TRUE(json["ttft_ms"].is_null());
  EXPECT_EQ(json["errors"], Json({{"HTTP 404", 1}}));
  EXPECT_EQ(json["throughput"]["requests_per_s"], 0);
  EXPECT_NE(ReportTable(report).find("1 x HTTP 404"), std::string::npos);
  EXPECT_NE(ReportProblem(report).find("1 of 1 requests failed"), std::string::npos);
}

TEST(Report, ADifferentAnswerIsAProblem) {
  BenchReport report = Report();
  report.verified = true;
  report.verification = {.checked = 2, .different = 1, .example = "request 1: another token"};
  EXPECT_NE(ReportProblem(report).find("another token"), std::string::npos);
  EXPECT_EQ(Json::parse(ReportJson(report))["verify"]["different"], 1);
}

TEST(Report, AnEmptyOrStoppedRunIsAProblem) {
  EXPECT_NE(ReportProblem(BenchReport()), "");
  BenchReport report = Report();
  report.result.status = absl::CancelledError("stopped");
  EXPECT_EQ(ReportProblem(report), "stopped");
}

TEST(Progress, FillsItsBarAndStaysOnALine) {
  const LoadOptions load{.requests = 10, .concurrency = 4};
  EXPECT_NE(ProgressLine({}, load).find("[....................] 0/10"), std::string::npos);
  const std::string half = ProgressLine({.good = 4, .failed = 1, .tokens = 50, .seconds = 5}, load);
  EXPECT_NE(half.find("[##########..........] 5/10 done"), std::string::npos);
  EXPECT_NE(half.find("10 tok/s, 1 failed"), std::string::npos);
  const std::string huge = ProgressLine(
      {.in_flight = 1 << 30, .good = int64_t{1} << 60, .tokens = int64_t{1} << 60, .seconds = 1e-3},
      {.duration_s = 1e-6});
  EXPECT_LE(huge.size(), 79u);
}

}  // namespace
}  // namespace lapidary
