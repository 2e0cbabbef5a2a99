// A stream against a writer that is done when the test says so: what waits, what is joined, and in
// which order it goes out.
#include "coordinator/token_stream.h"

#include <deque>
#include <string>
#include <vector>

#include "common/metrics_registry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

using testing::ElementsAre;
namespace wire = cluster::v1;

// Keeps what is written; the test says when a write is over.
class HeldWriter final : public StreamWriter {
 public:
  void Write(const v1::GenerateResponse& message) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    written_.push_back(message);
  }
  void Finish(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    end_ = status;
  }
  // Message number `index`, once it has been written.
  v1::GenerateResponse Await(size_t index) ABSL_LOCKS_EXCLUDED(mu_) {
    const auto there = [this, index]()
                           ABSL_SHARED_LOCKS_REQUIRED(mu_) { return written_.size() > index; };
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(10)));
    return written_.size() > index ? written_[index] : v1::GenerateResponse();
  }
  absl::Status AwaitEnd() ABSL_LOCKS_EXCLUDED(mu_) {
    const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return end_.has_value(); };
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&ended), absl::Seconds(10)));
    return end_.value_or(absl::UnknownError("no end"));
  }

 private:
  absl::Mutex mu_;
  std::vector<v1::GenerateResponse> written_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

class TokenStreamTest : public testing::Test {
 protected:
  TokenStreamTest() : metrics_(registry_, MetricsOptions{.model_name = "tiny"}) {
    CoordinatorConfig config;
    config.model_path = "tests/golden/models/dense-gpu";
    absl::StatusOr<std::unique_ptr<ServedModel>> model = ServedModel::Load(config);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  void Start(int choices, const StreamOptions& options = {}) {
    AdmittedRequest request;
    request.client_id = "mine";
    request.prompt_tokens = 3;
    request.stream = options;
    for (int i = 0; i < choices; ++i) request.choices.emplace_back().set_id(100 + i);
    TokenStream::Hooks hooks;
    hooks.cancel = [](const std::vector<RequestId>&) {};
    hooks.set_paused = [](const std::vector<RequestId>&, bool) {};
    hooks.over = [] {};
    stream_ = std::make_shared<TokenStream>(request, *model_, metrics_, SlowReaderPolicy{},
                                            absl::Seconds(1), writes_, std::move(hooks));
    stream_->Start(&writer_);
  }
  void Step(int choice, const std::vector<uint32_t>& ids,
            wire::Finish finish = wire::FINISH_UNSPECIFIED) {
    wire::RequestEvent event;
    event.set_id(100 + static_cast<uint64_t>(choice));
    for (const uint32_t id : ids) {
      wire::Scored* token = event.add_tokens();
      token->set_id(id);
      token->set_logprob(-0.5f * static_cast<float>(id));
    }
    event.set_finish(finish);
    stream_->OnEvent(event, absl::Now());
  }
  v1::GenerateResponse Next() {
    v1::GenerateResponse message = writer_.Await(read_++);
    return message;
  }
  void WriteDone() { stream_->WriteDone(true, absl::Now()); }
  static std::vector<uint32_t> Ids(const v1::GenerateResponse& m) {
    return {m.delta().token_ids().begin(), m.delta().token_ids().end()};
  }

  MetricsRegistry registry_;
  CoordinatorMetrics metrics_;
  std::unique_ptr<ServedModel> model_;
  WriteScheduler writes_;
  HeldWriter writer_;
  std::shared_ptr<TokenStream> stream_;
  size_t read_ = 0;
};

TEST_F(TokenStreamTest, StepsThatWaitForAWriteJoinOneMessage) {
  StreamOptions options;
  options.scores = true;
  Start(1, options);
  Step(0, {20});
  EXPECT_THAT(Ids(Next()), ElementsAre(20));  // at once, and the write stays open
  Step(0, {21});
  Step(0, {22, 23});
  Step(0, {24}, wire::FINISH_LENGTH);
  WriteDone();
  const v1::GenerateResponse joined = Next();
  EXPECT_EQ(joined.request_id(), "mine");
  EXPECT_THAT(Ids(joined), ElementsAre(21, 22, 23, 24));
  ASSERT_EQ(joined.delta().scores_size(), 4);
  EXPECT_EQ(joined.delta().scores(2).id(), 23u);
  EXPECT_EQ(joined.delta().scores(2).logprob(), -11.5f);
  EXPECT_EQ(joined.delta().text(),
            model_->tokenizer->Decode({21, 22, 23, 24}, /*skip_special=*/true));
  WriteDone();
  EXPECT_EQ(Next().choice_finished().completion_tokens(), 5u);
  WriteDone();
  EXPECT_EQ(Next().usage().total_tokens(), 8u);
  WriteDone();
  EXPECT_TRUE(writer_.AwaitEnd().ok());
}

TEST_F(TokenStreamTest, ChoicesAreNotJoined) {
  Start(2);
  Step(0, {20});
  EXPECT_THAT(Ids(Next()), ElementsAre(20));
  Step(1, {30});
  Step(1, {31});
  Step(0, {21});
  Step(1, {32});
  std::vector<std::vector<uint32_t>> rest;
  for (int i = 0; i < 3; ++i) {
    WriteDone();
    const v1::GenerateResponse m = Next();
    std::vector<uint32_t> ids = Ids(m);
    EXPECT_EQ(m.delta().choice(), ids[0] / 10 - 2);
    rest.push_back(std::move(ids));
  }
  EXPECT_THAT(rest, ElementsAre(ElementsAre(30, 31), ElementsAre(21), ElementsAre(32)));
  stream_->ClientGone(false, absl::Now());
}

TEST_F(TokenStreamTest, WhatWaitsBecomesNoMessageOfAnySize) {
  Start(1);
  Step(0, {20});
  Next();
  constexpr int kSteps = 20'000;  // 60 KB of ids, and their text
  for (int i = 0; i < kSteps; ++i) Step(0, {static_cast<uint32_t>(20 + i % 200)});
  int got = 0, messages = 0;
  while (got < kSteps) {
    WriteDone();
    const v1::GenerateResponse m = Next();
    ASSERT_GT(m.delta().token_ids_size(), 0);
    EXPECT_LT(m.ByteSizeLong(), 20'000u);
    got += m.delta().token_ids_size();
    ++messages;
  }
  EXPECT_EQ(got, kSteps);
  EXPECT_GT(messages, 3);
  EXPECT_LT(messages, 50);
  stream_->ClientGone(false, absl::Now());
}

TEST_F(TokenStreamTest, AStopStringThatCameInWaitingStepsEndsTheJoinedText) {
  StreamOptions options;
  options.stops = {model_->tokenizer->PieceText(22)};
  ASSERT_FALSE(options.stops[0].empty());
  Start(1, options);
  const std::string before = model_->tokenizer->Decode({21}, true);
  ASSERT_EQ(before.find(options.stops[0]), std::string::npos);
  Step(0, {21});
  v1::GenerateResponse first = Next();
  Step(0, {21});
  Step(0, {22});
  Step(0, {23});  // the engine was ahead
  WriteDone();
  EXPECT_THAT(Ids(Next()), ElementsAre(21, 22));
  WriteDone();
  const v1::GenerateResponse end = Next();
  EXPECT_EQ(end.choice_finished().stop(), options.stops[0]);
  EXPECT_EQ(end.choice_finished().completion_tokens(), 3u);
  WriteDone();
  EXPECT_EQ(Next().usage().completion_tokens(), 3u);
  WriteDone();
  EXPECT_TRUE(writer_.AwaitEnd().ok());
}

}  // namespace
}  // namespace lapidary
