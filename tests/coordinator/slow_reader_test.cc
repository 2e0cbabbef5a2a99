// Streams that nobody reads, against a real coordinator and a scripted worker.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "common/error_details.h"
#include "common/grpc_status.h"
#include "tests/support/coordinator_harness.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A stream that is opened and not read, on a connection of its own: the flow control window of the
// others stays free.
class UnreadStream {
 public:
  UnreadStream(int port, const v1::GenerateRequest& request) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(90)));
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::LapidaryService::NewStub(grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments));
    stream_ = stub_->Generate(&context_, request);
  }
  // Reads to the end, now.
  absl::Status ReadAll(std::vector<uint32_t>* ids) {
    v1::GenerateResponse event;
    while (stream_->Read(&event)) {
      for (const uint32_t id : event.delta().token_ids()) ids->push_back(id);
    }
    return FromGrpcStatus(stream_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::LapidaryService::Stub> stub_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> stream_;
};

// About 3 KB.
wire::RequestEvent BigEvent(uint64_t id, int32_t token) {
  wire::RequestEvent big = MakeEvent(id, {token});
  for (uint32_t i = 0; i < 128; ++i) {
    big.mutable_tokens(0)->add_top_ids(i);
    big.mutable_tokens(0)->add_top_logprobs(-1.0f);
  }
  return big;
}

v1::GenerateRequest RequestWithScores() {
  v1::GenerateRequest request = IdsRequest({5});
  request.mutable_output()->set_logprobs(128);
  return request;
}

class SlowReaderTest : public CoordinatorTest {
 protected:
  // Feeds tokens 10, 11, ... (then anew from 10) until the request is paused. One at a time: tokens
  // that wait are joined in one message, which a connection takes however long it is. On a slow
  // machine the pause may be due to a writer that lags, and not last.
  void FeedUntilPaused(uint64_t id) {
    const absl::Time give_up = absl::Now() + absl::Seconds(60);
    while (Metric(kPaused) < 1 && absl::Now() < give_up) Feed(id);
    std::optional<std::pair<uint64_t, bool>> change;
    do {
      change = leader().AwaitPauseChange();
    } while (change && !change->second);
    ASSERT_EQ(change, std::make_pair(id, true));
  }
  void ServeAnother() {
    auto quick = Generate(IdsRequest({6}, 30));
    const auto submit = leader().AwaitSubmit();
    ASSERT_TRUE(submit);
    leader().SendEvents({MakeEvent(submit->id(), {11})});
    leader().SendEvents({MakeEvent(submit->id(), {12}, wire::FINISH_LENGTH)});
    EXPECT_TRUE(quick->Wait().status.ok());
    EXPECT_THAT(quick->Wait().Ids(), ElementsAre(11, 12));
  }
  void Feed(uint64_t id, wire::Finish finish = wire::FINISH_UNSPECIFIED) {
    const auto token = static_cast<int32_t>(10 + sent_.size() % 200);
    wire::RequestEvent event = BigEvent(id, token);
    event.set_finish(finish);
    leader().SendEvents({event});
    sent_.push_back(static_cast<uint32_t>(token));
  }

  static constexpr char kPaused[] = "lapidary_requests_paused{model_name=\"tiny\"}";
  std::vector<uint32_t> sent_;
};

TEST_F(SlowReaderTest, IsPausedAndResumedWithEveryTokenOnceAndBlocksNobody) {
  CoordinatorConfig config = TestConfig();
  config.slow_reader_bytes = 64 << 10;
  config.slow_reader_timeout = absl::Hours(1);
  StartAll(config);
  UnreadStream slow(server_->port(), RequestWithScores());
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  for (int tries = 0; tries == 0 || (Metric(kPaused) < 1 && tries < 100); ++tries) {
    FeedUntilPaused(submit->id());
    if (HasFatalFailure()) return;
    Feed(submit->id());  // what the step in flight brings
    ServeAnother();
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(Metric(kPaused), 1);

  std::vector<uint32_t> got;
  absl::Status status;
  std::thread reader([&] { status = slow.ReadAll(&got); });
  const auto resumed = leader().AwaitPauseChange();
  EXPECT_TRUE(AwaitMetric(kPaused, 0));
  Feed(submit->id());
  Feed(submit->id(), wire::FINISH_LENGTH);
  reader.join();
  EXPECT_EQ(resumed, std::make_pair(submit->id(), false));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(got, sent_);
}

TEST_F(SlowReaderTest, IsCancelledWhenItTakesNothingForTooLong) {
  CoordinatorConfig config = TestConfig();
  config.slow_reader_bytes = 64 << 10;
  config.slow_reader_timeout = absl::Seconds(1);
  StartAll(config);
  UnreadStream slow(server_->port(), RequestWithScores());
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  const std::string ended = "lapidary_requests_total{finish=\"slow_reader\",model_name=\"tiny\"}";
  const absl::Time give_up = absl::Now() + absl::Seconds(80);
  while (Metric(ended) < 1 && absl::Now() < give_up) {
    if (Metric(kPaused) < 1) Feed(submit->id());
  }
  EXPECT_EQ(leader().AwaitCancel(), submit->id());
  EXPECT_EQ(Metric(kPaused), 0);
  std::vector<uint32_t> got;
  const absl::Status status = slow.ReadAll(&got);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(Reason(status), "SLOW_READER");
  EXPECT_THAT(std::string(status.message()), HasSubstr("took none for 1s"));
}

TEST_F(SlowReaderTest, AFloodThatNoPauseStopsIsCancelledAndBlocksNobody) {
  CoordinatorConfig config = TestConfig();
  config.slow_reader_bytes = 64 << 10;
  config.slow_reader_timeout = absl::Hours(1);
  StartAll(config);
  UnreadStream lazy(server_->port(), RequestWithScores());
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  auto quick = Generate(IdsRequest({6}, 30));
  const auto other = leader().AwaitSubmit();
  ASSERT_TRUE(other);

  // Feeds until the coordinator has had enough.
  const std::vector<wire::RequestEvent> step(20, BigEvent(submit->id(), 10));
  int served = 0;
  std::optional<uint64_t> cancelled;
  std::thread watcher([&] { cancelled = leader().AwaitCancel(); });
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  const std::string slow = "lapidary_requests_total{finish=\"slow_reader\",model_name=\"tiny\"}";
  while (Metric(slow) < 1 && absl::Now() < give_up) {
    leader().SendEvents(step);
    if (served < 30) {
      leader().SendEvents({MakeEvent(other->id(), {11})});
      ++served;
    }
  }
  watcher.join();
  EXPECT_EQ(cancelled, submit->id());
  leader().SendEvents({MakeEvent(other->id(), {12}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(quick->Wait().status.ok());
  EXPECT_EQ(quick->Wait().Ids().size(), static_cast<size_t>(served) + 1);
  std::vector<uint32_t> got;
  const absl::Status status = lazy.ReadAll(&got);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(Reason(status), "SLOW_READER");
}

}  // namespace
}  // namespace lapidary
