#include "cli/top/metrics_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace lapidary {
namespace {

using ::testing::HasSubstr;

constexpr double kInf = HUGE_VAL;

MetricsPage Parsed(std::string_view text) {
  const absl::StatusOr<MetricsPage> page = MetricsPage::Parse(text);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.value_or(MetricsPage());
}

// Lines as prometheus_client for Python writes them, in both of its formats.
constexpr char kAwkward[] =
    "# HELP c_total Help with \\\\ and\\nnewline \"quotes\"\n"
    "# TYPE c_total counter\n"
    "c_total{path=\"a\\\\b\\\"c\\nd,}{ =\"} 3.0\n"
    "c_total{path=\"\"} 1e+21\n"
    "c_total{path=\"\xc3\xbcn\xc3\xaf\"} 0.5\n"
    "c_created{path=\"\"} 1.7955713270254533e+09\n"
    "# HELP g \n"
    "# TYPE g gauge\n"
    "g NaN\n"
    "ninf -Inf\n"
    "pinf +Inf\n"
    "# TYPE h histogram\n"
    "h_bucket{k=\"x\",le=\"0.1\"} 0.0\n"
    "h_bucket{k=\"x\",le=\"1.0\"} 1.0\n"
    "h_bucket{k=\"x\",le=\"10.0\"} 2.0 # {trace_id=\"abc\"} 5.0 1795571327.0255601\n"
    "h_bucket{k=\"x\",le=\"+Inf\"} 2.0\n"
    "h_bucket{k=\"y\",le=\"0.1\"} 0.0\n"
    "h_bucket{k=\"y\",le=\"1.0\"} 0.0\n"
    "h_bucket{k=\"y\",le=\"10.0\"} 0.0\n"
    "h_bucket{k=\"y\",le=\"+Inf\"} 1.0\n"
    "i_info{v=\"1\"} 1.0\n"
    "# EOF\n";

TEST(MetricsText, ReadsWhatOthersWrite) {
  const MetricsPage page = Parsed(kAwkward);
  EXPECT_EQ(page.samples().size(), 16u);
  EXPECT_EQ(page.Sum("c_total", {{"path", "a\\b\"c\nd,}{ ="}}), 3);
  EXPECT_EQ(page.Sum("c_total", {{"path", ""}}), 1e21);
  EXPECT_EQ(page.Sum("c_total", {{"path", "\xc3\xbcn\xc3\xaf"}}), 0.5);
  EXPECT_EQ(page.Sum("ninf"), -kInf);
  EXPECT_EQ(page.Sum("pinf"), kInf);
  EXPECT_FALSE(page.Sum("g")) << "NaN is no number to show";
  EXPECT_FALSE(page.Sum("absent"));
  EXPECT_EQ(page.Label("i_info", "v"), "1");
  EXPECT_EQ(page.types().at("h"), "histogram");
  EXPECT_EQ(page.helps().at("g"), "");
  EXPECT_EQ(page.helps().at("c_total"), "Help with \\\\ and\\nnewline \"quotes\"");
}

TEST(MetricsText, BucketsAreSummedOverSeriesByBound) {
  const MetricsPage page = Parsed(kAwkward);
  EXPECT_EQ(page.Buckets("h"), (MetricBuckets{{0.1, 0}, {1, 1}, {10, 2}, {kInf, 3}}));
  EXPECT_EQ(page.Buckets("h", {{"k", "y"}}), (MetricBuckets{{0.1, 0}, {1, 0}, {10, 0}, {kInf, 1}}));
  EXPECT_TRUE(page.Buckets("c_total").empty());
}

TEST(MetricsText, BlanksTimestampsAndEndingsThatTheFormatAllows) {
  const MetricsPage page = Parsed(
      "\n  a { x = \"1\" , } 2 1395066363000\r\n"
      "\ta{} 3 -4\n#\n# a comment that says TYPE a counter\nb\t1\n"
      "n Nan\nlast 7");
  EXPECT_EQ(page.Sum("a"), 5);
  EXPECT_EQ(page.Sum("a", {{"x", "1"}}), 2);
  EXPECT_EQ(page.Sum("b"), 1);
  EXPECT_EQ(page.Sum("last"), 7) << "no newline at the end";
  EXPECT_TRUE(page.types().empty());
  EXPECT_TRUE(Parsed("").samples().empty());
}

TEST(MetricsText, WhatIsNoSampleIsNamedByItsLine) {
  for (const char* bad :
       {"<html>", "a", "a ", "a{ 1", "a{x} 1", "a{x=1} 1", "a{x=\"1} 1", "a{x=\"1\\", "a{x=\"1\"",
        "a{x=\"1\"y=\"2\"} 1", "a one", "1a 2", "a 1 soon", "{x=\"1\"} 1"}) {
    const auto page = MetricsPage::Parse(std::string("ok 1\n") + bad + "\n");
    EXPECT_EQ(page.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(page.status().message()), HasSubstr("line 2")) << bad;
  }
}

TEST(Quantiles, AreLinearWithinABucketOfWhatIsNew) {
  const MetricBuckets after = {{1, 10}, {2, 30}, {4, 40}, {kInf, 40}};
  EXPECT_EQ(QuantileOfDifference({}, after, 0.5), 1.5);  // 20th of 40
  EXPECT_EQ(QuantileOfDifference({}, after, 0.25), 1);   // 10th: the end of the first
  EXPECT_EQ(QuantileOfDifference({}, after, 0.125), 0.5);
  EXPECT_EQ(QuantileOfDifference({}, after, 1), 4);
  const MetricBuckets before = {{1, 10}, {2, 20}, {4, 20}, {kInf, 20}};
  EXPECT_EQ(QuantileOfDifference(before, after, 0.5), 2);   // 10 of 20, all in (1, 2]
  EXPECT_EQ(QuantileOfDifference(before, after, 0.75), 3);  // half of (2, 4]
}

TEST(Quantiles, BeyondTheBoundsAndWithoutObservations) {
  EXPECT_EQ(QuantileOfDifference({}, {{1, 0}, {kInf, 5}}, 0.5), 1) << "all above the last bound";
  EXPECT_FALSE(QuantileOfDifference({}, {{1, 0}, {kInf, 0}}, 0.5));
  const MetricBuckets same = {{1, 3}, {kInf, 5}};
  EXPECT_FALSE(QuantileOfDifference(same, same, 0.5));
  EXPECT_FALSE(QuantileOfDifference({}, {}, 0.5));
  EXPECT_FALSE(QuantileOfDifference({}, {{kInf, 5}}, 0.5));
  EXPECT_FALSE(QuantileOfDifference({}, {{1, 3}, {2, 5}}, 0.5)) << "cut off";
  EXPECT_FALSE(QuantileOfDifference({{kInf, 1}}, same, 0.5)) << "other bounds";
}

}  // namespace
}  // namespace lapidary
