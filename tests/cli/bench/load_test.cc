#include "cli/bench/load.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <set>

namespace lapidary {
namespace {

using Clock = std::chrono::steady_clock;

// Answers requests in order, at once, as the test says.
class FakeClient : public BenchClient {
 public:
  void Send(const BenchRequest& request, BenchTime due) override {
    sent.push_back(request.index);
    BenchAnswer answer;
    answer.index = request.index;
    answer.started = due;
    answer.finish_reason = "length";
    answer.prompt_tokens = std::ssize(request.prompt);
    answer.completion_tokens = request.output_tokens;
    answer.token_ids.assign(request.output_tokens, static_cast<uint32_t>(request.index));
    for (uint32_t i = 0; i < request.output_tokens; ++i) {
      answer.arrivals.push_back({Clock::now(), 1});
    }
    spoil(answer);
    waiting_.push_back(std::move(answer));
    most_in_flight = std::max(most_in_flight, std::ssize(waiting_));
  }

  void Poll(BenchTime until, std::vector<BenchAnswer>* answers) override {
    if (cancelled) {
      for (; !waiting_.empty(); waiting_.pop_front()) {
        waiting_.front().error_kind = "CANCELLED";
        answers->push_back(std::move(waiting_.front()));
      }
      return;
    }
    if (waiting_.empty() || hold) {
      while (Clock::now() < until) {
      }
      return;
    }
    waiting_.front().finished = Clock::now();
    answers->push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }

  void CancelAll() override { cancelled = true; }
  int64_t arrived_tokens() const override { return 0; }

  std::function<void(BenchAnswer&)> spoil = [](BenchAnswer&) {};
  std::vector<int64_t> sent;
  int64_t most_in_flight = 0;
  bool hold = false, cancelled = false;

 private:
  std::deque<BenchAnswer> waiting_;
};

Workload MakeWorkload(double rate = 0) {
  WorkloadOptions options;
  options.prompt_tokens = LengthMix::Parse("3").value();
  options.output_tokens = LengthMix::Parse("2-5").value();
  options.vocabulary = 100;
  options.rate = rate;
  return Workload::Create(options).value();
}

bool Never() { return false; }
void Ignore(const LoadProgress&) {}

TEST(RunLoad, AClosedLoopSendsEachRequestOnceAndKeepsItsStreamsBusy) {
  FakeClient client;
  const LoadResult result =
      RunLoad(client, MakeWorkload(), {.requests = 40, .concurrency = 7}, Never, Ignore);
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.sent, 40);
  EXPECT_EQ(result.tally.good, 40);
  EXPECT_EQ(client.most_in_flight, 7);
  EXPECT_EQ(std::set<int64_t>(client.sent.begin(), client.sent.end()).size(), 40u);
  EXPECT_EQ(result.answers.size(), 40u);
}

TEST(RunLoad, ArrivalsComeWhenTheyAreDueWhateverIsInFlight) {
  FakeClient client;
  const Workload workload = MakeWorkload(/*rate=*/2000);
  const BenchTime start = Clock::now();
  const LoadResult result =
      RunLoad(client, workload, {.requests = 100, .concurrency = 1, .rate = 2000}, Never, Ignore);
  double due = 0;
  for (int64_t i = 0; i < 100; ++i) due += workload.SecondsBefore(i);
  EXPECT_EQ(result.tally.good, 100);
  EXPECT_GE(std::chrono::duration<double>(Clock::now() - start).count(), due);
}

TEST(RunLoad, ADurationEndsTheSending) {
  FakeClient client;
  const LoadResult result =
      RunLoad(client, MakeWorkload(), {.duration_s = 0.05, .concurrency = 2}, Never, Ignore);
  EXPECT_TRUE(result.status.ok());
  EXPECT_GT(result.sent, 2);
  EXPECT_EQ(result.tally.good, result.sent);
}

TEST(RunLoad, ShortAnswersFail) {
  FakeClient client;
  client.spoil = [](BenchAnswer& answer) {
    if (answer.index % 4 == 1) answer.arrivals.pop_back();
  };
  const LoadResult result =
      RunLoad(client, MakeWorkload(), {.requests = 40, .concurrency = 4}, Never, Ignore);
  EXPECT_EQ(result.tally.good, 30);
  EXPECT_EQ(result.tally.failed, 10);
  EXPECT_EQ(result.tally.errors.at("too few tokens"), 10);
}

TEST(RunLoad, GivesUpWhenNothingWorks) {
  FakeClient client;
  client.spoil = [](BenchAnswer& answer) { answer.error_kind = "UNAVAILABLE"; };
  const LoadResult result =
      RunLoad(client, MakeWorkload(), {.duration_s = 1000, .concurrency = 4}, Never, Ignore);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(result.tally.failed, 32);
}

TEST(RunLoad, AStopCancelsWhatIsInFlightAndCountsNoFailure) {
  FakeClient client;
  client.hold = true;
  const LoadResult result = RunLoad(
      client, MakeWorkload(), {.requests = 40, .concurrency = 4}, [] { return true; }, Ignore);
  EXPECT_TRUE(absl::IsCancelled(result.status));
  EXPECT_TRUE(client.cancelled);
  EXPECT_EQ(result.sent, 4);
  EXPECT_EQ(result.tally.failed, 0);
}

TEST(WarmUp, SendsRequestsThatTheRunDoesNot) {
  FakeClient client;
  EXPECT_TRUE(WarmUp(client, MakeWorkload(), 6, {.concurrency = 4}, Never).ok());
  EXPECT_EQ(client.sent.size(), 6u);
  for (const int64_t index : client.sent) EXPECT_LT(index, 0);
  client.spoil = [](BenchAnswer& answer) { answer.error_kind = "UNAVAILABLE"; };
  EXPECT_FALSE(WarmUp(client, MakeWorkload(), 6, {.concurrency = 4}, Never).ok());
}

TEST(Verify, FindsTheAnswerThatIsNotTheSameAlone) {
  FakeClient client;
  const Workload workload = MakeWorkload();
  const LoadResult result =
      RunLoad(client, workload, {.requests = 20, .concurrency = 7}, Never, Ignore);
  EXPECT_EQ(VerifyAnswers(client, workload, result.answers, 10, {}, Never).different, 0);
  client.spoil = [](BenchAnswer& answer) {
    if (answer.index == 5) answer.token_ids.back() = 99;
    if (answer.index == 6) answer.error_kind = "UNAVAILABLE";
  };
  const Verification all = VerifyAnswers(client, workload, result.answers, 50, {}, Never);
  EXPECT_EQ(all.checked, 20);
  EXPECT_EQ(all.different, 1);
  EXPECT_EQ(all.failed, 1);
  EXPECT_NE(all.example.find("request 5"), std::string::npos);
}

}  // namespace
}  // namespace lapidary
