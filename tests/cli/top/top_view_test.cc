#include "cli/top/top_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kStarted = 1000;

// A coordinator's page; `n` scales what counts.
std::string Page(int n, double started = kStarted) {
  std::string page = absl::StrFormat(
      "process_start_time_seconds %.1f\n"
      "lapidary_build_info{process=\"coordinator\",version=\"1.2.3\"} 1\n"
      "lapidary_group_ready{model_name=\"tiny\"} 1\n"
      "lapidary_draining{model_name=\"tiny\"} 0\nlapidary_epoch{model_name=\"tiny\"} 2\n"
      "lapidary_worker_up{model_name=\"tiny\",rank=\"0\"} 1\n"
      "lapidary_worker_up{model_name=\"tiny\",rank=\"1\"} 0\n"
      "lapidary_requests_running_by_class{class=\"interactive\",model_name=\"tiny\"} 12\n"
      "lapidary_requests_running_by_class{class=\"batch\",model_name=\"tiny\"} 4\n"
      "lapidary_requests_waiting_by_class{class=\"interactive\",model_name=\"tiny\"} 3\n"
      "lapidary_requests_waiting_by_class{class=\"batch\",model_name=\"tiny\"} 1040\n"
      "lapidary_requests_paused{model_name=\"tiny\"} 5\n"
      "lapidary_queued_prompt_tokens{model_name=\"tiny\"} 123456\n"
      "lapidary_streams_open{model_name=\"tiny\"} 20\n"
      "lapidary_kv_pages{family=\"sliding\",model_name=\"tiny\"} 100\n"
      "lapidary_kv_pages_used{family=\"sliding\",model_name=\"tiny\"} 50\n"
      "lapidary_kv_pages_cached{family=\"sliding\",model_name=\"tiny\"} 25\n"
      "lapidary_kv_pages{family=\"global\",model_name=\"tiny\"} 0\n",
      started);
  const std::pair<const char*, double> counters[] = {{"lapidary_prompt_tokens_total", 1000},
                                                     {"lapidary_generation_tokens_total", 50},
                                                     {"lapidary_prefix_cache_queries_total", 1000},
                                                     {"lapidary_prefix_cache_hits_total", 640},
                                                     {"lapidary_preemptions_total", 3},
                                                     {"lapidary_recomputed_tokens_total", 20},
                                                     {"lapidary_steps_total", 40},
                                                     {"lapidary_decode_rows_total", 320}};
  for (const auto& [name, value] : counters) {
    page += absl::StrFormat("%s{model_name=\"tiny\"} %g\n", name, n * value);
  }
  page += absl::StrFormat(
      "lapidary_requests_total{finish=\"stop\",model_name=\"tiny\"} %d\n"
      "lapidary_requests_total{finish=\"length\",model_name=\"tiny\"} %d\n"
      "lapidary_time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.1\"} %d\n"
      "lapidary_time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.3\"} %d\n"
      "lapidary_time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"+Inf\"} %d\n"
      "lapidary_step_seconds_sum{model_name=\"tiny\",part=\"plan\"} %g\n"
      "lapidary_step_seconds_count{model_name=\"tiny\",part=\"plan\"} %d\n"
      "lapidary_step_seconds_sum{model_name=\"tiny\",part=\"forward\"} %g\n"
      "lapidary_step_seconds_count{model_name=\"tiny\",part=\"forward\"} %d\n"
      "lapidary_step_tokens_sum{model_name=\"tiny\"} %d\n"
      "lapidary_step_tokens_count{model_name=\"tiny\"} %d\n",
      n, 3 * n, 0, n, n, n * 0.04, n * 40, n * 0.8, n * 40, n * 1800, n * 40);
  return page;
}

TopView View(const std::string* before, const std::string& after, double seconds, double now) {
  MetricsPage earlier;
  if (before != nullptr) earlier = *MetricsPage::Parse(*before);
  const auto view =
      MakeTopView(before == nullptr ? nullptr : &earlier, *MetricsPage::Parse(after), seconds, now);
  EXPECT_TRUE(view.ok()) << view.status();
  return view.value_or(TopView());
}

TEST(TopView, RatesAreOfTheInterval) {
  const std::string before = Page(3), after = Page(4);
  const TopView v = View(&before, after, 2, kStarted + 3600);
  EXPECT_EQ(v.model, "tiny");
  EXPECT_EQ(v.uptime_seconds, 3600);
  EXPECT_EQ(v.workers_up, (std::vector<bool>{true, false}));
  EXPECT_EQ(v.interactive.running, 12);
  EXPECT_EQ(v.batch.waiting, 1040);
  EXPECT_EQ(v.paused, 5);
  EXPECT_EQ(v.prompt_rate, 500);
  EXPECT_EQ(v.output_rate, 25);
  EXPECT_EQ(v.ended_rate, 2) << "all ways to end";
  EXPECT_EQ(v.step_rate, 20);
  EXPECT_DOUBLE_EQ(*v.first_token_p50, 0.2);
  EXPECT_FALSE(v.gap_p50) << "nothing observed";
  EXPECT_EQ(v.kv[0].cached, 25);
  EXPECT_DOUBLE_EQ(*v.prefix_hits, 0.64);
  EXPECT_EQ(v.preemptions, 12);
  EXPECT_EQ(v.new_preemptions, 3);
  EXPECT_NEAR(*v.plan_seconds, 0.001, 1e-9);
  EXPECT_NEAR(*v.forward_seconds, 0.02, 1e-9);
  EXPECT_FALSE(v.sample_seconds);
  EXPECT_EQ(v.decode_rows, 8);
  EXPECT_EQ(v.step_tokens, 45);
}

TEST(TopView, WithoutAnEarlierPageItIsSinceTheStart) {
  const TopView v = View(nullptr, Page(4), 0, kStarted + 100);
  EXPECT_EQ(v.interval_seconds, 100);
  EXPECT_EQ(v.prompt_rate, 40);
  EXPECT_EQ(v.step_rate, 1.6);
}

TEST(TopView, ANewProcessBeginsAnew) {
  const std::string before = Page(9), after = Page(1, kStarted + 50);
  const TopView v = View(&before, after, 2, kStarted + 60);
  EXPECT_EQ(v.interval_seconds, 10);
  EXPECT_EQ(v.prompt_rate, 100) << "not below 0";
}

TEST(TopView, AnotherServersPageIsRefused) {
  const auto page = MetricsPage::Parse("lapidary_steps_total{rank=\"0\"} 5\n");
  const auto view = MakeTopView(nullptr, *page, 1, 1);
  EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(view.status().message()), HasSubstr("not a coordinator"));
}

TEST(RenderTop, ShowsEverything) {
  const std::string before = Page(3), after = Page(4);
  const std::string table =
      absl::StrJoin(RenderTop(View(&before, after, 2, kStarted + 3723), 80), "\n");
  for (const char* text :
       {"tiny   ready, rank 1 is missing   epoch 2   up 1 h 02 min   lapidary 1.2.3",
        "  interactive        12        3", "  batch               4    1,040",
        "  all                16    1,043        5",
        "123,456 prompt tokens queued, 20 streams open", "500 in, 25.0 out; 2.0 requests/s ended",
        "  first token          200 ms      298 ms", "  between tokens            -           -",
        "  sliding     [##########:::::.....] 50 + 25 of 100 (50.0% used)",
        "  global      no such layers", "prefix hits 64.0%", "preemptions 12 (3 now)",
        "20.0/s: plan 1.00 ms, forward 20 ms, sample -", "8.0 decode rows, 45.0 tokens in all"}) {
    EXPECT_THAT(table, HasSubstr(text));
  }
}

TEST(RenderTop, FitsAnyWidthAndSurvivesAnyNumbers) {
  TopView v;
  v.model = std::string(300, 'm');
  v.kv[0] = {5e18, -3, 10};
  v.kv[1] = {1, 1, 1e6};
  v.uptime_seconds = 1e9;
  v.prompt_rate = 1e300;
  for (const int width : {0, 1, 20, 79, 500}) {
    for (const std::string& line : RenderTop(v, width)) {
      EXPECT_LE(static_cast<int>(line.size()), width);
    }
  }
  // A page or two of a million are still seen.
  EXPECT_THAT(absl::StrJoin(RenderTop(v, 80), "\n"), HasSubstr("[#:"));
}

TEST(RenderTop, AServersNameCannotSteerTheTerminal) {
  TopView v;
  v.model = "\x1b[2Jevil\n";
  v.version = "\x9b";
  const std::string table = absl::StrJoin(RenderTop(v, 80), "\n");
  EXPECT_THAT(table, HasSubstr("?[2Jevil?"));
  EXPECT_THAT(table, Not(HasSubstr("\x1b")));
  EXPECT_THAT(table, Not(HasSubstr("\x9b")));
}

}  // namespace
}  // namespace lapidary
