// Whole calls against a real coordinator and a scripted worker.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "common/error_details.h"
#include "common/grpc_status.h"
#include "coordinator/served_model.h"
#include "tests/support/coordinator_harness.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GenerateTest : public CoordinatorTest {};

TEST_F(GenerateTest, TextGetsOneBosAndStreamsText) {
  StartAll(TestConfig());
  auto call = Generate(TextRequest("the cat"));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  std::vector<TokenId> prompt = {2};
  for (const TokenId id : Encode("the cat")) prompt.push_back(id);
  EXPECT_THAT(std::vector<TokenId>(submit->prompt().begin(), submit->prompt().end()), prompt);

  const std::vector<TokenId> answer = Encode(" sat on it");
  ASSERT_GE(answer.size(), 2u);
  const std::vector<TokenId> first(answer.begin(), answer.begin() + 1),
      rest(answer.begin() + 1, answer.end());
  leader().SendEvents({MakeEvent(submit->id(), first)});
  leader().SendEvents({MakeEvent(submit->id(), rest, wire::FINISH_LENGTH)});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.Text(), " sat on it");
  EXPECT_EQ(reply.Ids(), std::vector<uint32_t>(answer.begin(), answer.end()));
  // A delta for each step or one for both, the end of the choice, the usage.
  ASSERT_GE(reply.events.size(), 3u);
  ASSERT_LE(reply.events.size(), 4u);
  EXPECT_TRUE(reply.events[0].has_delta());
  EXPECT_TRUE(reply.events[reply.events.size() - 3].has_delta());
  EXPECT_EQ(reply.Finished()->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.Usage()->prompt_tokens(), prompt.size());
  EXPECT_EQ(reply.Usage()->completion_tokens(), answer.size());
  EXPECT_EQ(reply.Usage()->total_tokens(), prompt.size() + answer.size());
  EXPECT_FALSE(reply.events[0].request_id().empty());
}

TEST_F(GenerateTest, TokenIdsGetNoBosAndResolvedSampling) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5, 6, 7});
  request.set_request_id("mine");
  request.mutable_sampling()->set_temperature(0.5);
  request.mutable_sampling()->set_seed(42);
  request.mutable_stopping()->add_stop_token_ids(9);
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  EXPECT_THAT(submit->prompt(), ElementsAre(5, 6, 7));
  EXPECT_EQ(submit->client_request_id(), "mine");
  EXPECT_EQ(submit->sampling().temperature(), 0.5f);
  EXPECT_EQ(submit->sampling().top_p(), 1.0f);
  EXPECT_EQ(submit->sampling().repetition_penalty(), 1.0f);
  EXPECT_EQ(submit->sampling().seed(), 42u);
  EXPECT_EQ(submit->sampling().max_tokens(), 8);
  EXPECT_EQ(submit->sampling().logprobs(), -1);
  EXPECT_THAT(submit->sampling().stop_ids(), ElementsAre(1, 9));  // the model's, then ours
  EXPECT_GT(submit->deadline_seconds(), 0);

  wire::RequestEvent event = MakeEvent(submit->id(), {10, 9}, wire::FINISH_STOP);
  event.set_stop_id(9);
  leader().SendEvents({event});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.events[0].request_id(), "mine");
  EXPECT_THAT(reply.Ids(), ElementsAre(10, 9));
  EXPECT_EQ(reply.Finished()->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.Finished()->stop_token_id(), 9u);
  EXPECT_EQ(reply.Usage()->completion_tokens(), 2u);
  EXPECT_EQ(reply.Usage()->prompt_tokens(), 3u);
  // The stop token's text is not part of the text.
  EXPECT_EQ(reply.Text(), tokenizer_->Decode({10}, true));
}

TEST_F(GenerateTest, ChatIsRenderedWithOneBos) {
  StartAll(TestConfig());
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->add_content()->set_text("Hi");
  request.mutable_stopping()->set_max_tokens(4);
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  std::vector<TokenId> prompt(submit->prompt().begin(), submit->prompt().end());
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 2), 1);
  EXPECT_EQ(prompt.front(), 2);
  EXPECT_THAT(tokenizer_->Decode(prompt, false), HasSubstr("<|turn>user\nHi<turn|>"));
  leader().SendEvents({MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(call->Wait().status.ok());
}

TEST_F(GenerateTest, AChatThatEndsInAToolCallSaysSo) {
  StartAll(TestConfig());
  const auto call_end = tokenizer_->Find("<tool_call|>");
  ASSERT_TRUE(call_end);
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->add_content()->set_text("Hi");
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  wire::RequestEvent event = MakeEvent(submit->id(), {10, *call_end, 1}, wire::FINISH_STOP);
  event.set_stop_id(1);
  leader().SendEvents({event});
  EXPECT_EQ(call->Wait().Finished()->reason(), v1::FINISH_REASON_TOOL_CALLS);
}

TEST_F(GenerateTest, ChoicesAreIndependent) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5, 6});
  request.set_n(2);
  request.mutable_output()->set_prompt_logprobs(0);
  auto call = Generate(request);
  const auto a = leader().AwaitSubmit(), b = leader().AwaitSubmit();
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->id(), b->id());
  EXPECT_EQ(a->choice(), 0u);
  EXPECT_EQ(b->choice(), 1u);
  EXPECT_EQ(a->sampling().seed(), b->sampling().seed());  // the choice is part of the counter
  EXPECT_EQ(a->sampling().prompt_logprobs(), 0);
  EXPECT_EQ(b->sampling().prompt_logprobs(), -1);
  leader().SendEvents({MakeEvent(b->id(), {20, 21}), MakeEvent(a->id(), {10})});
  leader().SendEvents({MakeEvent(b->id(), {22}, wire::FINISH_LENGTH)});
  leader().SendEvents({MakeEvent(a->id(), {11}, wire::FINISH_LENGTH)});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_THAT(reply.Ids(0), ElementsAre(10, 11));
  EXPECT_THAT(reply.Ids(1), ElementsAre(20, 21, 22));
  EXPECT_EQ(reply.Finished(0)->completion_tokens(), 2u);
  EXPECT_EQ(reply.Finished(1)->completion_tokens(), 3u);
  EXPECT_EQ(reply.Usage()->completion_tokens(), 5u);
  EXPECT_EQ(reply.Usage()->prompt_tokens(), 2u);
}

TEST_F(GenerateTest, AStopStringAcrossTokensCutsTextAndUsageAndCancels) {
  StartAll(TestConfig());
  // Cut into single characters, so that the stop string spans tokens for certain.
  std::vector<TokenId> ids;
  for (const char c : std::string("abc#!xyz")) {
    const std::vector<TokenId> one = Encode(std::string(1, c));
    ids.insert(ids.end(), one.begin(), one.end());
  }
  ASSERT_EQ(ids.size(), 8u) << "one token a character";
  v1::GenerateRequest request = IdsRequest({5}, 20);
  request.mutable_stopping()->add_stop("never");
  request.mutable_stopping()->add_stop("c#!");
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  for (const TokenId id : ids) leader().SendEvents({MakeEvent(submit->id(), {id})});
  EXPECT_EQ(leader().AwaitCancel(), submit->id());
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.Text(), "ab");
  EXPECT_EQ(reply.Ids().size(), 5u);  // up to the token that completed it
  EXPECT_EQ(reply.Finished()->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(reply.Finished()->stop(), "c#!");
  EXPECT_EQ(reply.Finished()->completion_tokens(), 5u);
  EXPECT_EQ(reply.Usage()->completion_tokens(), 5u);
}

TEST_F(GenerateTest, IncludeStopKeepsItAndHeldTextComesAtTheEnd) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5}, 20);
  request.mutable_stopping()->add_stop("ab");
  request.mutable_stopping()->set_include_stop(true);
  auto call = Generate(request);
  auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  // All tokens in one step: what follows the stop is dropped.
  std::vector<TokenId> ids = Encode("xaby");
  leader().SendEvents({MakeEvent(submit->id(), ids)});
  EXPECT_EQ(call->Wait().Text(), "xab");

  auto held = Generate(request);
  submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), Encode("xa"), wire::FINISH_LENGTH)});
  EXPECT_EQ(held->Wait().Text(), "xa");
  EXPECT_EQ(held->Wait().Finished()->reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerateTest, LogprobsAndPromptScores) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5, 6, 7});
  request.mutable_output()->set_logprobs(2);
  request.mutable_output()->set_prompt_logprobs(1);
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  EXPECT_EQ(submit->sampling().logprobs(), 2);
  EXPECT_EQ(submit->sampling().prompt_logprobs(), 1);
  // The prompt's scores come chunk by chunk.
  wire::RequestEvent chunk;
  chunk.set_id(submit->id());
  chunk.add_prompt_scores()->set_id(6);
  leader().SendEvents({chunk});
  wire::RequestEvent last = MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH);
  wire::Scored* prompt = last.add_prompt_scores();
  prompt->set_id(7);
  prompt->set_logprob(-1.5);
  last.mutable_tokens(0)->add_top_ids(10);
  last.mutable_tokens(0)->add_top_logprobs(-0.5);
  last.mutable_tokens(0)->add_top_ids(300);
  last.mutable_tokens(0)->add_top_logprobs(-2.5);
  leader().SendEvents({last});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  std::vector<v1::TokenScore> scores;
  for (const auto& e : reply.events) {
    for (const auto& s : e.prompt_scores().scores()) scores.push_back(s);
  }
  ASSERT_EQ(scores.size(), 2u);
  EXPECT_EQ(scores[0].id(), 6u);
  EXPECT_EQ(scores[1].id(), 7u);
  EXPECT_EQ(scores[1].logprob(), -1.5f);
  EXPECT_EQ(scores[1].token(), std::string(tokenizer_->PieceName(7)));
  const auto& delta = reply.events[reply.events.size() - 3].delta();
  ASSERT_EQ(delta.scores_size(), 1);
  EXPECT_EQ(delta.scores(0).logprob(), -0.5f);
  ASSERT_EQ(delta.scores(0).top_size(), 2);
  EXPECT_EQ(delta.scores(0).top(1).id(), 300u);
  EXPECT_EQ(delta.scores(0).top(1).token(), std::string(tokenizer_->PieceName(300)));
  EXPECT_EQ(delta.scores(0).top(1).logprob(), -2.5f);
}

TEST_F(GenerateTest, ACharacterInByteTokensIsNeverCut) {
  StartAll(TestConfig());
  const auto b1 = tokenizer_->Find("<0xC3>"), b2 = tokenizer_->Find("<0xA9>");
  ASSERT_TRUE(b1 && b2);
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), {*b1})});
  leader().SendEvents({MakeEvent(submit->id(), {*b2})});
  leader().SendEvents({MakeEvent(submit->id(), {*b1}, wire::FINISH_LENGTH)});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.Text(), "\xc3\xa9\xef\xbf\xbd");  // the end: half a character
  for (const v1::GenerateResponse& event : reply.events) {
    EXPECT_EQ(ToValidUtf8(event.delta().text()), event.delta().text());
  }
}

TEST_F(GenerateTest, SkipTextStillStopsAtStrings) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5}, 20);
  request.mutable_stopping()->add_stop("b");
  request.mutable_output()->set_skip_text(true);
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), Encode("a"))});
  leader().SendEvents({MakeEvent(submit->id(), Encode("b"))});
  EXPECT_EQ(call->Wait().Text(), "");
  EXPECT_EQ(call->Wait().Finished()->stop(), "b");
}

TEST_F(GenerateTest, CancellationReachesTheEngine) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), {10})});
  call->Cancel();
  EXPECT_EQ(leader().AwaitCancel(), submit->id());
  EXPECT_EQ(call->Wait().status.error_code(), grpc::StatusCode::CANCELLED);
  // Late events of a forgotten request hurt nobody.
  leader().SendEvents({MakeEvent(submit->id(), {11}, wire::FINISH_CANCELLED)});
  auto next = Generate(IdsRequest({5}));
  const auto second = leader().AwaitSubmit();
  ASSERT_TRUE(second);
  leader().SendEvents({MakeEvent(second->id(), {12}, wire::FINISH_LENGTH)});
  EXPECT_THAT(next->Wait().Ids(), ElementsAre(12));
  EXPECT_EQ(Metric("lapidary_requests_total{finish=\"cancelled\",model_name=\"tiny\"}"), 1);
}

TEST_F(GenerateTest, ADeadlineCancelsInTheEngine) {
  StartAll(TestConfig());
  Call call(*stub_, IdsRequest({5}), absl::Milliseconds(300));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  EXPECT_GT(submit->deadline_seconds(), 0);
  EXPECT_LE(submit->deadline_seconds(), 0.31);  // gRPC rounds up to whole milliseconds
  EXPECT_EQ(leader().AwaitCancel(), submit->id());
  EXPECT_EQ(call.Wait().status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GenerateTest, ALiveIdIsRefusedAndFreeAgainAtTheEnd) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5});
  request.set_request_id("job-1");
  auto first = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  EXPECT_EQ(Generate(request)->Wait().status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  leader().SendEvents({MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(first->Wait().status.ok());
  auto again = Generate(request);
  const auto second = leader().AwaitSubmit();
  ASSERT_TRUE(second) << "the id was not free";
  EXPECT_NE(second->id(), submit->id());
  leader().SendEvents({MakeEvent(second->id(), {10}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(again->Wait().status.ok());
}

TEST_F(GenerateTest, AFullQueueIsResourceExhaustedWithRetry) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  wire::RequestEvent event = MakeEvent(submit->id(), {}, wire::FINISH_ERROR);
  event.set_error_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  event.set_error_message("1 request waits, the limit is 1");
  leader().SendEvents({event});
  const absl::Status status = FromGrpcStatus(call->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(status.message(), "1 request waits, the limit is 1");
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(250));
  EXPECT_EQ(Reason(status), "QUEUE_FULL");
  EXPECT_EQ(
      Metric("lapidary_admission_rejections_total{model_name=\"tiny\",reason=\"queue_full\"}"), 1);
}

TEST_F(GenerateTest, TheEngineKnowsWhenToTryAgain) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  wire::RequestEvent event = MakeEvent(submit->id(), {}, wire::FINISH_ERROR);
  event.set_error_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  event.set_retry_after_seconds(2.5);
  leader().SendEvents({event});
  EXPECT_EQ(RetryAfter(FromGrpcStatus(call->Wait().status)), absl::Milliseconds(2500));
}

TEST_F(GenerateTest, ADeadlineThatPassesInTheQueueIsTheClientsStatus) {
  StartAll(TestConfig());
  auto call = Generate(IdsRequest({5}));
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  wire::RequestEvent event = MakeEvent(submit->id(), {}, wire::FINISH_ERROR);
  event.set_error_code(static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  event.set_error_message("waited 2 s of 2 s");
  leader().SendEvents({event});
  const grpc::Status& status = call->Wait().status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(status.error_message(), "waited 2 s of 2 s");
  EXPECT_EQ(Metric("lapidary_requests_total{finish=\"deadline\",model_name=\"tiny\"}"), 1);
}

TEST_F(GenerateTest, UsageTellsWhatTheFirstChoiceFoundInThePrefixCache) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5, 6, 7, 8});
  request.set_n(2);
  request.set_tenant("blue");
  auto call = Generate(request);
  const auto a = leader().AwaitSubmit(), b = leader().AwaitSubmit();
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->tenant(), "blue");
  EXPECT_EQ(a->cache_key(), b->cache_key());
  wire::RequestEvent first = MakeEvent(a->id(), {10}, wire::FINISH_LENGTH);
  first.set_cached_tokens(3);
  wire::RequestEvent second = MakeEvent(b->id(), {10}, wire::FINISH_LENGTH);
  second.set_cached_tokens(1);
  leader().SendEvents({second, first});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.Usage()->cached_prompt_tokens(), 3u);
}

TEST_F(GenerateTest, OneChoiceRefusedEndsTheOthers) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5});
  request.set_n(2);
  auto call = Generate(request);
  const auto a = leader().AwaitSubmit(), b = leader().AwaitSubmit();
  ASSERT_TRUE(a && b);
  wire::RequestEvent event = MakeEvent(b->id(), {}, wire::FINISH_ERROR);
  event.set_error_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  event.set_error_message("needs 9 pages, the pool has 8");
  leader().SendEvents({event});
  EXPECT_EQ(leader().AwaitCancel(), a->id());
  EXPECT_EQ(call->Wait().status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GenerateTest, RefusalsNameTheProblem) {
  StartAll(TestConfig());
  v1::GenerateRequest request = IdsRequest({5});
  request.set_model("gpt");
  absl::Status status = FromGrpcStatus(Generate(request)->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ResourceName(status), "gpt");
  EXPECT_THAT(std::string(status.message()), HasSubstr("'tiny'"));

  request = IdsRequest({5}, 64);  // the group said 64 in all
  request.mutable_sampling()->set_top_p(2);
  status = FromGrpcStatus(Generate(request)->Wait().status);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(BadFields(status).size(), 2u);
  EXPECT_EQ(BadFields(status)[0].field, "sampling.top_p");
  EXPECT_EQ(BadFields(status)[1].field, "stopping.max_tokens");
  EXPECT_THAT(BadFields(status)[1].description, HasSubstr("65"));
  EXPECT_THAT(BadFields(status)[1].description, HasSubstr("64"));
  EXPECT_EQ(
      Metric("lapidary_admission_rejections_total{model_name=\"tiny\",reason=\"bad_request\"}"), 1);
}

TEST_F(GenerateTest, AMessageTooLargeIsRefusedBeforeItIsRead) {
  CoordinatorConfig config = TestConfig();
  config.max_request_bytes = 2048;
  StartAll(config);
  const Reply reply = Generate(TextRequest(std::string(4096, 'a')))->Wait();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GenerateTest, TraceContextIsForwardedAsAChild) {
  StartAll(TestConfig());
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  Call call(*stub_, IdsRequest({5}), absl::Seconds(20), "00-" + trace + "-00f067aa0ba902b7-01");
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  ASSERT_EQ(submit->traceparent().size(), 55u);
  EXPECT_EQ(submit->traceparent().substr(0, 36), "00-" + trace + "-");
  EXPECT_NE(submit->traceparent().substr(36, 16), "00f067aa0ba902b7");
  leader().SendEvents({MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH)});
  EXPECT_TRUE(call.Wait().status.ok());
}

TEST_F(GenerateTest, WithoutATokenizerTokenIdsAreServed) {
  StartAll(TestConfig(kModelWithoutTokenizer));
  v1::GenerateRequest request = IdsRequest({5, 6});
  request.mutable_output()->set_logprobs(0);
  auto call = Generate(request);
  const auto submit = leader().AwaitSubmit();
  ASSERT_TRUE(submit);
  leader().SendEvents({MakeEvent(submit->id(), {10}, wire::FINISH_LENGTH)});
  const Reply& reply = call->Wait();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_THAT(reply.Ids(), ElementsAre(10));
  EXPECT_EQ(reply.Text(), "");

  const absl::Status text = FromGrpcStatus(Generate(TextRequest("hi"))->Wait().status);
  EXPECT_EQ(text.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(text.message()), HasSubstr("tokenizer"));
  request.mutable_stopping()->add_stop("x");
  EXPECT_EQ(Generate(request)->Wait().status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(GenerateTest, ManyStreamsAtOnceEachGetTheirOwn) {
  StartAll(TestConfig());
  constexpr int kCalls = 32, kTokens = 20;
  std::vector<std::unique_ptr<Call>> calls;
  for (uint32_t i = 0; i < kCalls; ++i) calls.push_back(Generate(IdsRequest({i + 10}, kTokens)));
  std::vector<wire::Submit> submits;
  for (int i = 0; i < kCalls; ++i) {
    auto submit = leader().AwaitSubmit();
    ASSERT_TRUE(submit);
    submits.push_back(*submit);
  }
  for (int t = 0; t < kTokens; ++t) {
    std::vector<wire::RequestEvent> step;
    for (const wire::Submit& s : submits) {
      const auto token = static_cast<int32_t>(s.prompt(0) + static_cast<uint32_t>(t));
      step.push_back(MakeEvent(s.id(), {token},
                               t + 1 == kTokens ? wire::FINISH_LENGTH : wire::FINISH_UNSPECIFIED));
    }
    leader().SendEvents(step);
  }
  for (uint32_t i = 0; i < kCalls; ++i) {
    const Reply& reply = calls[i]->Wait();
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    const std::vector<uint32_t> ids = reply.Ids();
    ASSERT_EQ(ids.size(), static_cast<size_t>(kTokens));
    for (uint32_t t = 0; t < kTokens; ++t) EXPECT_EQ(ids[t], i + 10 + t);
  }
  EXPECT_EQ(Metric("lapidary_generation_tokens_total{model_name=\"tiny\"}"), kCalls * kTokens);
}

}  // namespace
}  // namespace lapidary
