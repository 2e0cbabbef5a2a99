#include "coordinator/coordinator_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CoordinatorMetricsTest : public ::testing::Test {
 protected:
  void Expect(std::initializer_list<const char*> series) {
    const std::string page = registry_.Text();
    for (const char* line : series) EXPECT_THAT(page, HasSubstr(line));
  }

  MetricsRegistry registry_;
  CoordinatorMetrics metrics_{registry_, MetricsOptions{.model_name = "m", .tensor_parallel = 2}};
};

TEST_F(CoordinatorMetricsTest, ARequestsTimesAddUp) {
  EndedRequest request;
  request.outcome = Outcome::kLength;
  request.seconds = 8;
  request.prompt_tokens = 100;
  request.generated_tokens = 12;
  request.longest_choice = 9;
  request.choices = 2;
  request.max_tokens = 16;
  request.first_choice =
      ChoiceTimes{.queue = 1, .first_token = 3, .last_token = 7, .tokens = 9, .cached_tokens = 64};
  metrics_.Finished(request);
  Expect({"lapidary_requests_total{finish=\"length\",model_name=\"m\"} 1",
          "lapidary_request_seconds_sum{model_name=\"m\"} 8",
          "lapidary_prefill_seconds_sum{model_name=\"m\"} 2",
          "lapidary_decode_seconds_sum{model_name=\"m\"} 4",
          "lapidary_inference_seconds_sum{model_name=\"m\"} 6",
          "lapidary_output_token_seconds_sum{model_name=\"m\"} 0.5",
          "lapidary_request_generation_tokens_sum{model_name=\"m\"} 12",
          "lapidary_request_max_num_generation_tokens_sum{model_name=\"m\"} 9",
          "lapidary_request_prefill_computed_tokens_sum{model_name=\"m\"} 36",
          "lapidary_request_params_n_sum{model_name=\"m\"} 2",
          "lapidary_request_params_max_tokens_sum{model_name=\"m\"} 16",
          "vllm:request_prefill_time_seconds_sum{engine=\"0\",model_name=\"m\"} 2",
          "vllm:request_decode_time_seconds_sum{engine=\"0\",model_name=\"m\"} 4",
          "vllm:request_inference_time_seconds_sum{engine=\"0\",model_name=\"m\"} 6",
          "vllm:request_time_per_output_token_seconds_sum{engine=\"0\",model_name=\"m\"} 0.5",
          "vllm:request_params_n_sum{engine=\"0\",model_name=\"m\"} 2"});
}

TEST_F(CoordinatorMetricsTest, WithoutATokenThereAreNoTimesOfOne) {
  metrics_.Finished(EndedRequest{.outcome = Outcome::kCancelled, .seconds = 1});
  EndedRequest one;  // a single token has no gap
  one.first_choice = ChoiceTimes{.queue = 2, .first_token = 1, .last_token = 1, .tokens = 1};
  metrics_.Finished(one);
  Expect({"lapidary_request_seconds_count{model_name=\"m\"} 2",
          "lapidary_prefill_seconds_count{model_name=\"m\"} 1",
          "lapidary_prefill_seconds_sum{model_name=\"m\"} 0",  // never below 0
          "lapidary_output_token_seconds_count{model_name=\"m\"} 0"});
}

TEST_F(CoordinatorMetricsTest, StepsAreObservedOneByOne) {
  metrics_.Stepped(StepWork{.steps = 1, .tokens = 40, .forward_seconds = 0.5});
  metrics_.Stepped(StepWork{.steps = 2, .tokens = 20, .plan_seconds = 1, .sample_seconds = 3});
  Expect({"lapidary_step_tokens_count{model_name=\"m\"} 3",
          "lapidary_step_tokens_sum{model_name=\"m\"} 60",
          "lapidary_step_tokens_bucket{model_name=\"m\",le=\"16\"} 2",
          "vllm:iteration_tokens_total_sum{engine=\"0\",model_name=\"m\"} 60",
          "lapidary_step_seconds_sum{model_name=\"m\",part=\"plan\"} 1",
          "lapidary_step_seconds_sum{model_name=\"m\",part=\"forward\"} 0.5",
          "lapidary_step_seconds_sum{model_name=\"m\",part=\"sample\"} 3"});
}

TEST_F(CoordinatorMetricsTest, TheEnginesNumbersOfEachEpochAdd) {
  GroupState state;
  state.phase = GroupPhase::kReady;
  state.epoch = 1;
  state.rank_up = {true, false};
  state.waiting = 5;
  state.waiting_batch = 2;
  state.running = 9;
  state.running_batch = 3;
  state.waiting_tokens = 700;
  state.sliding_pages = 100;
  state.sliding_pages_used = 25;
  state.global_pages = 200;
  state.global_pages_used = 20;
  state.global_pages_cached = 60;
  state.preemptions = 1;
  state.recomputed_tokens = 8;
  state.steps = 10;
  state.decode_rows = 30;
  state.prefill_tokens = 40;
  state.prefix_lookup_tokens = 50;
  state.prefix_hit_tokens = 32;
  state.prefix_evicted_pages = 6;
  metrics_.Update(state, 4);
  metrics_.Update(state, 4);
  ++state.epoch;  // another leader counts from zero
  state.steps = 1;
  metrics_.Update(state, 4);
  Expect({"lapidary_requests_waiting{model_name=\"m\"} 5",
          "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 9",
          "lapidary_requests_waiting_by_class{class=\"interactive\",model_name=\"m\"} 3",
          "lapidary_requests_waiting_by_class{class=\"batch\",model_name=\"m\"} 2",
          "lapidary_requests_running_by_class{class=\"interactive\",model_name=\"m\"} 6",
          "lapidary_requests_running_by_class{class=\"batch\",model_name=\"m\"} 3",
          "lapidary_queued_prompt_tokens{model_name=\"m\"} 700",
          "lapidary_kv_pages{family=\"global\",model_name=\"m\"} 200",
          "lapidary_kv_pages_used{family=\"sliding\",model_name=\"m\"} 25",
          "lapidary_kv_pages_cached{family=\"global\",model_name=\"m\"} 60",
          "lapidary_kv_usage_ratio{family=\"sliding\",model_name=\"m\"} 0.25",
          "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25",
          "lapidary_steps_total{model_name=\"m\"} 11",
          "lapidary_decode_rows_total{model_name=\"m\"} 60",
          "lapidary_recomputed_tokens_total{model_name=\"m\"} 16",
          "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"m\"} 100",
          "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 64",
          "lapidary_prefix_cache_evicted_pages_total{model_name=\"m\"} 12",
          "lapidary_streams_open{model_name=\"m\"} 4",
          "lapidary_worker_up{model_name=\"m\",rank=\"0\"} 1",
          "lapidary_worker_up{model_name=\"m\",rank=\"1\"} 0"});
}

TEST_F(CoordinatorMetricsTest, NanReachesNoHistogram) {
  const double nan = std::nan("");
  metrics_.QueueTime(nan);
  metrics_.FirstToken(nan);
  metrics_.InterToken(nan, 2);
  EndedRequest request;
  request.seconds = nan;
  request.first_choice =
      ChoiceTimes{.queue = nan, .first_token = nan, .last_token = nan, .tokens = 2};
  metrics_.Finished(request);
  metrics_.Stepped(StepWork{.steps = 1, .plan_seconds = nan, .forward_seconds = nan});
  metrics_.Update(GroupState{}, 0);
  EXPECT_THAT(registry_.Text(), Not(HasSubstr("Nan")));
  Expect({"lapidary_queue_seconds_count{model_name=\"m\"} 0",
          "lapidary_decode_seconds_count{model_name=\"m\"} 0",
          "lapidary_requests_total{finish=\"stop\",model_name=\"m\"} 1"});
}

// The value after `sample` on a page of metrics; -1 when it is not there.
double Value(const std::string& page, const std::string& sample) {
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    double value = 0;
    if (line.compare(0, sample.size() + 1, sample + " ") == 0 &&
        absl::SimpleAtod(line.substr(sample.size() + 1), &value)) {
      return value;
    }
  }
  return -1;
}

TEST(CoordinatorInterTokenTest, WaitsOfAStepAreCountedTogetherAndEachOnce) {
  MetricsRegistry registry;
  CoordinatorMetrics metrics(registry, MetricsOptions{.model_name = "m"});
  for (int stream = 0; stream < 256; ++stream) metrics.InterToken(0.03, 1);
  metrics.InterToken(0.5, 2);  // two tokens in half a second
  metrics.InterToken(0.03, 1);
  metrics.Update(GroupState{}, 0);
  for (const std::string series :
       {"lapidary_inter_token_latency_seconds%{model_name=\"m\"",
        "vllm:inter_token_latency_seconds%{engine=\"0\",model_name=\"m\""}) {
    const size_t name_end = series.find('%');
    const std::string name = series.substr(0, name_end), labels = series.substr(name_end + 1);
    const std::string page = registry.Text();
    const auto value = [&](const char* suffix, const char* label) {
      return Value(page, absl::StrCat(name, suffix, labels, label, "}"));
    };
    EXPECT_EQ(value("_count", ""), 259) << page;
    EXPECT_NEAR(value("_sum", ""), 257 * 0.03 + 2 * 0.25, 1e-9);
    EXPECT_EQ(value("_bucket", ",le=\"0.008\""), 0);
    EXPECT_EQ(value("_bucket", ",le=\"+Inf\""), 259);
  }
  metrics.Update(GroupState{}, 0);
  EXPECT_EQ(Value(registry.Text(), "lapidary_inter_token_latency_seconds_count{model_name=\"m\"}"),
            259);
}

}  // namespace
}  // namespace lapidary
