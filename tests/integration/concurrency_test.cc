// 64 streams of mixed lengths at once: every one gets exactly the tokens it gets alone, and they
// are computed together rather than one after the other.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/integration/serve_process.h"

namespace lapidary {
namespace {

constexpr int kStreams = 64;

struct Shape {
  const char* name;
  const char* model;
  int vocab;
  std::vector<std::string> flags;
  double min_mean_decode_rows;
  bool preempts = false;
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

// Prompts of 3 to 200 tokens, 160 to 240 generated; every other request samples with a seed.
std::vector<v1::GenerateRequest> MixedRequests(int vocab) {
  std::mt19937 rng(11);
  std::vector<v1::GenerateRequest> requests(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    v1::GenerateRequest& request = requests[i];
    const int length = 3 + static_cast<int>(rng() % 198);
    request.mutable_token_ids()->add_ids(2);
    for (int t = 1; t < length; ++t) request.mutable_token_ids()->add_ids(5 + rng() % (vocab - 5));
    request.mutable_stopping()->set_max_tokens(160 + rng() % 81);
    request.mutable_stopping()->set_ignore_eos(true);
    v1::SamplingOptions& sampling = *request.mutable_sampling();
    sampling.set_temperature(i % 2 == 0 ? 0.0f : 0.9f);
    if (i % 2 == 1) sampling.set_seed(1000 + i);
    if (i % 4 == 1) sampling.set_top_k(20);
    if (i % 4 == 3) sampling.set_top_p(0.9f);
    if (i % 8 == 5) sampling.set_frequency_penalty(0.5f);
    request.mutable_output()->set_skip_text(true);
  }
  return requests;
}

void AwaitRunning(const ServeProcess& serve) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (serve.Metric("lapidary_requests_running").value_or(0) < 2 && absl::Now() < deadline) {
  }
}

class ConcurrencyTest : public ::testing::TestWithParam<Shape> {};

TEST_P(ConcurrencyTest, EveryStreamGetsTheTokensItGetsAlone) {
  absl::StatusOr<std::unique_ptr<ServeProcess>> serve =
      ServeProcess::Start(GetParam().model, GetParam().flags);
  ASSERT_TRUE(serve.ok()) << serve.status();
  const std::vector<v1::GenerateRequest> requests = MixedRequests(GetParam().vocab);

  std::vector<std::vector<uint32_t>> alone;
  const auto stub = (*serve)->NewStub();
  for (const v1::GenerateRequest& request : requests) {
    const absl::StatusOr<Answer> answer = Ask(*stub, request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_EQ(answer->token_ids.size(), request.stopping().max_tokens());
    alone.push_back(answer->token_ids);
  }

  const absl::StatusOr<double> steps_before = (*serve)->Metric("lapidary_steps_total");
  const absl::StatusOr<double> rows_before = (*serve)->Metric("lapidary_decode_rows_total");
  const absl::StatusOr<double> preempted_before = (*serve)->Metric("lapidary_preemptions_total");
  ASSERT_TRUE(steps_before.ok()) << steps_before.status();
  ASSERT_TRUE(rows_before.ok()) << rows_before.status();
  ASSERT_TRUE(preempted_before.ok()) << preempted_before.status();

  std::vector<absl::StatusOr<Answer>> answers(kStreams, absl::UnknownError("not asked"));
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    v1::GenerateRequest request = requests[i];
    if (GetParam().preempts) {
      // First a night's batch takes the pages, then others come who go first.
      if (i < kStreams / 2) request.set_priority(v1::PRIORITY_BATCH);
      if (i == kStreams / 2) AwaitRunning(**serve);
    }
    clients.emplace_back([&serve, request, &answers, i] {
      const auto own = (*serve)->NewStub();
      answers[i] = Ask(*own, request);
    });
  }
  for (std::thread& client : clients) client.join();
  double tokens = 0;
  for (int i = 0; i < kStreams; ++i) {
    ASSERT_TRUE(answers[i].ok()) << "stream " << i << ": " << answers[i].status();
    EXPECT_EQ(answers[i]->token_ids, alone[i]) << "stream " << i;
    EXPECT_EQ(answers[i]->finish, v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(answers[i]->completion_tokens, alone[i].size());
    tokens += static_cast<double>(alone[i].size());
  }

  // The workers report now and then. A token is no decode row when it comes from a prompt: a
  // request's first one, and the next one after a preemption, where all tokens so far are computed
  // again.
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  double rows = 0, steps = 0, preempted = 0;
  while (rows < tokens - kStreams - preempted && absl::Now() < deadline) {
    const absl::StatusOr<double> preempted_now = (*serve)->Metric("lapidary_preemptions_total");
    const absl::StatusOr<double> rows_now = (*serve)->Metric("lapidary_decode_rows_total");
    const absl::StatusOr<double> steps_now = (*serve)->Metric("lapidary_steps_total");
    ASSERT_TRUE(preempted_now.ok() && rows_now.ok() && steps_now.ok());
    preempted = *preempted_now - *preempted_before;
    rows = *rows_now - *rows_before;
    steps = *steps_now - *steps_before;
  }
  std::printf("%.0f tokens in %.0f steps, mean %.1f decode rows a step, %.0f preemptions\n", tokens,
              steps, rows / steps, preempted);
  EXPECT_GE(rows, tokens - kStreams - preempted);
  EXPECT_EQ(preempted > 0, GetParam().preempts);
  EXPECT_GE(rows / steps, GetParam().min_mean_decode_rows);
}

// About 2 MB of scores: more than connection and queue hold, so the request is paused until it is
// read, and its first tokens are computed twice.
TEST(SlowReader, GetsTheTokensOfAQuickOneAndBlocksNobody) {
  absl::StatusOr<std::unique_ptr<ServeProcess>> serve =
      ServeProcess::Start("tests/golden/models/dense-gpu",
                          {"--threads", "1", "--compute", "fp32", "--max-running", "1",
                           "--slow-reader-bytes", "256KiB", "--slow-reader-timeout", "100"});
  ASSERT_TRUE(serve.ok()) << serve.status();
  v1::GenerateRequest request;
  for (const uint32_t id : {2, 9, 5}) request.mutable_token_ids()->add_ids(id);
  request.mutable_stopping()->set_max_tokens(900);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_seed(3);
  request.mutable_output()->set_skip_text(true);
  const auto quick = (*serve)->NewStub();
  const absl::StatusOr<Answer> alone = Ask(*quick, request);
  ASSERT_TRUE(alone.ok()) << alone.status();
  ASSERT_EQ(alone->token_ids.size(), 900u);

  request.mutable_output()->set_logprobs(128);
  request.mutable_output()->set_skip_text(false);
  // The connection itself holds little: 64 KiB rather than megabytes.
  grpc::ChannelArguments small_window;
  small_window.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small_window.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  const auto slow = (*serve)->NewStub(small_window);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto reader = slow->Generate(&context, request);
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  double paused = 0;
  while (paused < 1 && absl::Now() < deadline) {
    const absl::StatusOr<double> now = (*serve)->Metric("lapidary_requests_paused");
    ASSERT_TRUE(now.ok()) << now.status();
    paused = *now;
  }
  ASSERT_EQ(paused, 1);
  // One sequence runs at a time: this one has its place.
  request.mutable_output()->clear_logprobs();
  const absl::StatusOr<Answer> meanwhile = Ask(*quick, request);
  ASSERT_TRUE(meanwhile.ok()) << meanwhile.status();
  EXPECT_EQ(meanwhile->token_ids, alone->token_ids);
  EXPECT_EQ((*serve)->Metric("lapidary_requests_paused").value_or(-1), 1);

  std::vector<uint32_t> got;
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    for (const uint32_t id : event.delta().token_ids()) got.push_back(id);
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(got, alone->token_ids);
}

std::string Name(const ::testing::TestParamInfo<Shape>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Models, ConcurrencyTest,
    ::testing::Values(Shape{"moe_tp2",
                            "tests/golden/models/moe-gpu",
                            512,
                            {"--tp", "2", "--threads", "1", "--compute", "bf16", "--kv-memory",
                             "256MiB"},
                            32},
                      Shape{"ple_tp1",
                            "tests/golden/models/ple-gpu",
                            512,
                            {"--threads", "1", "--compute", "fp32", "--kv-memory", "256MiB"},
                            32},
                      // KV for a few sequences only: the others wait, and batch work is preempted
                      // and computed again.
                      Shape{"dense_few_pages",
                            "tests/golden/models/dense-awkward",
                            211,
                            {"--threads", "1", "--compute", "fp32", "--kv-memory", "2MiB"},
                            4,
                            true}),
    Name);

}  // namespace
}  // namespace lapidary
