// The group's states without a network.
#include "coordinator/group_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error_details.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1000);

struct FakeLink : WorkerLink {
  void Send(wire::ConnectResponse message) override { sent.push_back(std::move(message)); }
  void Close(const absl::Status& status) override { closed = status; }
  std::vector<wire::ConnectResponse> sent;
  std::optional<absl::Status> closed;
};

struct FakeSink : RequestSink {
  void OnEvent(const wire::RequestEvent& event, absl::Time) override {
    events.push_back(event.id());
  }
  void OnLost(const absl::Status& why, absl::Time) override { lost.push_back(why); }
  std::vector<uint64_t> events;
  std::vector<absl::Status> lost;
};

class GroupClientTest : public ::testing::Test {
 protected:
  static CoordinatorConfig Config() {
    CoordinatorConfig config;
    config.tensor_parallel = 2;
    config.worker_connect_timeout = absl::Seconds(5);
    return config;
  }
  std::shared_ptr<FakeLink> Connect(std::optional<uint32_t> rank = {}) {
    auto link = std::make_shared<FakeLink>();
    wire::Register hello;
    hello.set_worker("host/" + std::to_string(++pid_));
    if (rank) hello.set_rank_hint(*rank);
    last_register_ = group_.Register(hello, link);
    return link;
  }
  wire::ConnectRequest Message() {
    wire::ConnectRequest message;
    message.set_epoch(group_.state().epoch);
    return message;
  }
  void MakeReady(const FakeLink& link) {
    wire::ConnectRequest message = Message();
    message.mutable_ready()->set_max_context_tokens(50);
    message.mutable_ready()->set_weights_bytes(10);
    group_.OnMessage(&link, message, kStart);
  }
  static wire::Submit SubmitOf(uint64_t id) {
    wire::Submit submit;
    submit.set_id(id);
    return submit;
  }

  int changes_ = 0, pid_ = 0;
  absl::Status last_register_;
  GroupClient group_{Config(), "test", kStart, [this] { ++changes_; }};
};

TEST_F(GroupClientTest, OnlyTheLeadersReadyMakesTheGroupReady) {
  const auto a = Connect(), b = Connect();
  EXPECT_EQ(group_.state().phase, GroupPhase::kLoading);
  EXPECT_EQ(a->sent[0].assignment().rank(), 0u);
  EXPECT_EQ(b->sent[0].assignment().rank(), 1u);
  EXPECT_EQ(a->sent[0].epoch(), 1u);
  MakeReady(*b);
  EXPECT_FALSE(group_.state().ready());
  MakeReady(*a);
  EXPECT_TRUE(group_.state().ready());
  EXPECT_EQ(group_.state().weights_bytes, 20);
  EXPECT_EQ(group_.state().max_context, 50);
  EXPECT_GE(changes_, 3);
}

TEST_F(GroupClientTest, TheLeadersCommunicatorIdReachesTheOthers) {
  const auto leader = Connect(), other = Connect();
  wire::ConnectRequest message = Message();
  message.mutable_communicator_id()->set_id("where we meet");
  group_.OnMessage(other.get(), message, kStart);  // not its to make
  EXPECT_EQ(other->sent.size(), 1u);
  group_.OnMessage(leader.get(), message, kStart);
  ASSERT_EQ(other->sent.size(), 2u);
  EXPECT_EQ(other->sent[1].communicator_id().id(), "where we meet");
  EXPECT_EQ(other->sent[1].epoch(), 1u);
  EXPECT_EQ(leader->sent.size(), 1u);
  message.set_epoch(0);
  group_.OnMessage(leader.get(), message, kStart);  // of another epoch
  EXPECT_EQ(other->sent.size(), 2u);
}

TEST_F(GroupClientTest, AGroupHasOneKindOfDevice) {
  wire::Register gpu, cpu;
  gpu.set_worker("a/1");
  gpu.set_device("cuda");
  cpu.set_worker("b/2");
  cpu.set_device("cpu");
  ASSERT_TRUE(group_.Register(gpu, std::make_shared<FakeLink>()).ok());
  const absl::Status refused = group_.Register(cpu, std::make_shared<FakeLink>());
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("the device is cpu, that of a/1 is cuda"));
}

TEST(GroupClientOptionsTest, TheAssignmentCarriesTheEnginesOptions) {
  CoordinatorConfig config;
  config.kv_format = "single";
  config.kv_type = "int8";
  config.prefix_cache = false;
  config.max_in_flight = 2;
  config.step_time_target = absl::Milliseconds(50);
  config.max_queued_tokens = int64_t{1} << 33;
  config.tenant_weights = {{"blue", 3}, {"", 0.5}};
  GroupClient group(config, "test", kStart, [] {});
  const auto link = std::make_shared<FakeLink>();
  ASSERT_TRUE(group.Register(wire::Register(), link).ok());
  const wire::Assignment& a = link->sent[0].assignment();
  EXPECT_EQ(a.kv_format(), "single");
  EXPECT_EQ(a.kv_type(), "int8");
  EXPECT_FALSE(a.prefix_cache());
  EXPECT_EQ(a.max_in_flight(), 2u);
  EXPECT_EQ(a.step_seconds_target(), 0.05);
  EXPECT_EQ(a.max_queued_tokens(), uint64_t{1} << 33);
  ASSERT_EQ(a.tenant_weights_size(), 2);
  EXPECT_EQ(a.tenant_weights().at("blue"), 3);
}

TEST_F(GroupClientTest, TheLeadersLoadIsKept) {
  const auto a = Connect(), b = Connect();
  MakeReady(*a);
  wire::ConnectRequest message = Message();
  wire::Load& load = *message.mutable_load();
  load.set_waiting_batch(1);
  load.set_running_batch(2);
  load.set_sliding_pages_cached(3);
  load.set_global_pages_cached(4);
  load.set_recomputed_tokens(5);
  load.set_prefix_lookup_tokens(6);
  load.set_prefix_hit_tokens(7);
  group_.OnMessage(b.get(), message, kStart);  // not the leader
  EXPECT_EQ(group_.state().running_batch, 0);
  group_.OnMessage(a.get(), message, kStart);
  const GroupState state = group_.state();
  EXPECT_EQ(state.waiting_batch, 1);
  EXPECT_EQ(state.running_batch, 2);
  EXPECT_EQ(state.sliding_pages_cached, 3);
  EXPECT_EQ(state.global_pages_cached, 4);
  EXPECT_EQ(state.recomputed_tokens, 5u);
  EXPECT_EQ(state.prefix_lookup_tokens, 6u);
  EXPECT_EQ(state.prefix_hit_tokens, 7u);
}

TEST(GroupClientStepsTest, WhatTheLeaderComputedIsToldByDifferences) {
  std::vector<StepWork> told;
  CoordinatorConfig config;
  GroupClient group(
      config, "test", kStart, [] {}, [&](const StepWork& work) { told.push_back(work); });
  const auto link = std::make_shared<FakeLink>();
  ASSERT_TRUE(group.Register(wire::Register(), link).ok());
  const auto load = [&](uint64_t steps, uint64_t decode, uint64_t prefill, double forward) {
    wire::ConnectRequest message;
    message.set_epoch(1);
    message.mutable_load()->set_steps(steps);
    message.mutable_load()->set_decode_rows(decode);
    message.mutable_load()->set_prefill_tokens(prefill);
    message.mutable_load()->mutable_step_seconds()->set_forward(forward);
    group.OnMessage(link.get(), message, kStart);
  };
  load(0, 0, 0, 0);  // before the first step
  load(1, 0, 20, 0.5);
  load(1, 0, 20, 0.5);  // the queue changed
  load(3, 8, 30, 1.5);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].steps, 1u);
  EXPECT_EQ(told[0].tokens, 20u);
  EXPECT_EQ(told[0].forward_seconds, 0.5);
  EXPECT_EQ(told[1].steps, 2u);
  EXPECT_EQ(told[1].tokens, 18u);
  EXPECT_EQ(told[1].forward_seconds, 1.0);
}

TEST_F(GroupClientTest, AWorkerThatLeavesBeforeTheGroupIsCompleteIsForgotten) {
  const auto a = Connect(0);
  group_.OnClosed(a.get(), "gone", kStart);
  EXPECT_EQ(group_.state().connected, 0);
  Connect(0);
  EXPECT_TRUE(last_register_.ok()) << "the rank was not free again";
}

TEST_F(GroupClientTest, LosingAnyRankEndsTheEpochForEveryRequestOnce) {
  const auto a = Connect(), b = Connect();
  MakeReady(*a);
  const auto one = std::make_shared<FakeSink>(), two = std::make_shared<FakeSink>();
  ASSERT_TRUE(group_.Submit({SubmitOf(1)}, one).ok());
  ASSERT_TRUE(group_.Submit({SubmitOf(2), SubmitOf(3)}, two).ok());
  group_.OnClosed(b.get(), "its connection closed", kStart);
  group_.OnClosed(a.get(), "its connection closed", kStart);  // follows; changes nothing
  ASSERT_EQ(one->lost.size(), 1u);
  ASSERT_EQ(two->lost.size(), 2u);  // once a choice; the stream takes the first
  EXPECT_EQ(one->lost[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(one->lost[0].message()),
            "the group was lost: rank 1 (host/2) was lost: its connection closed");
  EXPECT_TRUE(RetryAfter(one->lost[0]));
  EXPECT_TRUE(a->sent.back().has_abort());
  EXPECT_TRUE(a->closed);
  EXPECT_FALSE(b->sent.back().has_abort());
  EXPECT_EQ(group_.state().phase, GroupPhase::kWaiting);
  EXPECT_THAT(group_.state().Describe(), HasSubstr("0 of 2 workers connected; rank 1"));
  // Late messages of the old epoch go nowhere.
  wire::ConnectRequest late;
  late.set_epoch(1);
  late.mutable_step_events()->add_events()->set_id(1);
  group_.OnMessage(a.get(), late, kStart);
  EXPECT_TRUE(one->events.empty());
  Connect();
  Connect();
  EXPECT_EQ(group_.state().epoch, 2u);
  EXPECT_EQ(group_.state().last_failure, "");
}

TEST_F(GroupClientTest, EventsGoToTheirRequestUntilItEnds) {
  const auto a = Connect(), b = Connect();
  MakeReady(*a);
  const auto one = std::make_shared<FakeSink>(), two = std::make_shared<FakeSink>();
  ASSERT_TRUE(group_.Submit({SubmitOf(1)}, one).ok());
  ASSERT_TRUE(group_.Submit({SubmitOf(2)}, two).ok());
  const auto step = [&](const std::vector<std::pair<uint64_t, wire::Finish>>& events,
                        const FakeLink& from) {
    wire::ConnectRequest message = Message();
    for (const auto& [id, finish] : events) {
      wire::RequestEvent* event = message.mutable_step_events()->add_events();
      event->set_id(id);
      event->set_finish(finish);
    }
    group_.OnMessage(&from, message, kStart);
  };
  step({{1, wire::FINISH_UNSPECIFIED}, {2, wire::FINISH_STOP}, {77, wire::FINISH_STOP}}, *a);
  step({{1, wire::FINISH_UNSPECIFIED}, {2, wire::FINISH_UNSPECIFIED}}, *a);
  EXPECT_THAT(one->events, ElementsAre(1, 1));
  EXPECT_THAT(two->events, ElementsAre(2));   // nothing after its end
  step({{1, wire::FINISH_UNSPECIFIED}}, *b);  // not the leader
  EXPECT_EQ(one->events.size(), 2u);
  const size_t before = a->sent.size();
  group_.Cancel({RequestId{1}, RequestId{2}});
  ASSERT_EQ(a->sent.size(), before + 1) << "request 2 had ended";
  EXPECT_EQ(a->sent.back().cancel().id(), 1u);
  step({{1, wire::FINISH_CANCELLED}}, *a);
  EXPECT_EQ(one->events.size(), 2u);
}

TEST_F(GroupClientTest, MissingWorkersAreReportedOnceTheTimeIsUp) {
  Connect();
  group_.Tick(kStart + absl::Seconds(4));
  EXPECT_EQ(group_.state().last_failure, "");
  group_.Tick(kStart + absl::Seconds(6));
  EXPECT_EQ(group_.state().Describe(), "1 of 2 workers connected; only 1 of 2 after 5s");
  const int before = changes_;
  group_.Tick(kStart + absl::Seconds(7));
  EXPECT_EQ(changes_, before);
  Connect();  // late, but welcome
  EXPECT_EQ(group_.state().phase, GroupPhase::kLoading);
}

TEST(GroupClientMissingTest, HintsTellWhichRanksAreMissing) {
  CoordinatorConfig config;
  config.tensor_parallel = 4;
  GroupClient group(config, "test", kStart, [] {});
  const auto connect = [&group](std::optional<uint32_t> rank) {
    auto link = std::make_shared<FakeLink>();
    wire::Register hello;
    if (rank) hello.set_rank_hint(*rank);
    EXPECT_TRUE(group.Register(hello, link).ok());
    return link;
  };
  EXPECT_EQ(group.state().Describe(), "0 of 4 workers connected");
  const auto two = connect(2);
  EXPECT_EQ(group.state().Describe(), "1 of 4 workers connected (ranks 0, 1, 3 are missing)");
  connect(0);
  const auto three = connect(3);
  EXPECT_EQ(group.state().Describe(), "3 of 4 workers connected (rank 1 is missing)");
  group.OnClosed(three.get(), "gone", kStart);
  EXPECT_EQ(group.state().Describe(), "2 of 4 workers connected (ranks 1, 3 are missing)");
  connect(std::nullopt);  // it may become either
  EXPECT_EQ(group.state().Describe(), "3 of 4 workers connected");
}

TEST_F(GroupClientTest, DrainingRefusesRequestsAndNewWorkers) {
  const auto a = Connect(), b = Connect();
  MakeReady(*a);
  group_.BeginDrain();
  const absl::Status status = group_.Submit({SubmitOf(1)}, std::make_shared<FakeSink>());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Reason(status), "DRAINING");
  Connect();
  EXPECT_EQ(last_register_.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group_.WaitUntilReady(absl::InfiniteFuture()).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace lapidary
