#include "coordinator/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "common/error_details.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Request = v1::GenerateRequest;

std::unique_ptr<ServedModel> LoadTiny() {
  CoordinatorConfig config;
  config.model_path = "tests/golden/models/dense-gpu";
  auto model = ServedModel::Load(config);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

class AdmissionTest : public ::testing::Test {
 protected:
  absl::StatusOr<AdmittedRequest> Admit(const Request& request, int64_t max_context = 100) {
    CallFacts facts;
    facts.now = absl::FromUnixSeconds(1000);
    facts.deadline = deadline_;
    return admission_.Admit(request, facts, max_context);
  }
  static Request Ids(int count = 3) {
    Request request;
    for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids(static_cast<uint32_t>(i));
    return request;
  }

  std::unique_ptr<ServedModel> model_ = LoadTiny();
  Admission admission_{*model_, 7};
  absl::Time deadline_ = absl::InfiniteFuture();
};

// --- Every validated field has a bad value here, and is named. ---

struct BadCase {
  const char* name;
  const char* field;
  const char* says;
  std::function<void(Request&)> spoil;
};

class BadFieldTest : public AdmissionTest, public ::testing::WithParamInterface<BadCase> {};

TEST_P(BadFieldTest, IsNamed) {
  Request request = Ids();
  GetParam().spoil(request);
  const auto admitted = Admit(request);
  ASSERT_EQ(admitted.status().code(), absl::StatusCode::kInvalidArgument) << admitted.status();
  const std::vector<FieldViolation> bad = BadFields(admitted.status());
  ASSERT_EQ(bad.size(), 1u) << admitted.status();
  EXPECT_EQ(bad[0].field, GetParam().field);
  EXPECT_THAT(bad[0].description, HasSubstr(GetParam().says));
  EXPECT_THAT(std::string(admitted.status().message()), HasSubstr(GetParam().field));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

const BadCase kBadCases[] = {
    {"no_input", "input", "none of", [](Request& r) { r.clear_input(); }},
    {"no_ids", "token_ids.ids", "empty", [](Request& r) { r.mutable_token_ids()->clear_ids(); }},
    {"id_beyond_vocabulary", "token_ids.ids[3]", "512",
     [](Request& r) { r.mutable_token_ids()->add_ids(512); }},
    {"id_beyond_int32", "token_ids.ids[3]", "4294967295",
     [](Request& r) { r.mutable_token_ids()->add_ids(0xffffffffu); }},
    {"no_messages", "chat.messages", "empty", [](Request& r) { r.mutable_chat(); }},
    {"empty_part", "chat.messages[0].content[0]", "no text",
     [](Request& r) {
       r.mutable_chat()->add_messages()->set_role("user");
       r.mutable_chat()->mutable_messages(0)->add_content();
     }},
    {"temperature_negative", "sampling.temperature", "-0.1",
     [](Request& r) { r.mutable_sampling()->set_temperature(-0.1f); }},
    {"temperature_nan", "sampling.temperature", "nan",
     [](Request& r) { r.mutable_sampling()->set_temperature(kNan); }},
    {"temperature_large", "sampling.temperature", "101",
     [](Request& r) { r.mutable_sampling()->set_temperature(101); }},
    {"top_p_zero", "sampling.top_p", "0", [](Request& r) { r.mutable_sampling()->set_top_p(0); }},
    {"top_p_large", "sampling.top_p", "1.5",
     [](Request& r) { r.mutable_sampling()->set_top_p(1.5); }},
    {"min_p", "sampling.min_p", "2", [](Request& r) { r.mutable_sampling()->set_min_p(2); }},
    {"repetition_zero", "sampling.repetition_penalty", "0",
     [](Request& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
    {"repetition_inf", "sampling.repetition_penalty", "inf",
     [](Request& r) { r.mutable_sampling()->set_repetition_penalty(kInf); }},
    {"presence", "sampling.presence_penalty", "-3",
     [](Request& r) { r.mutable_sampling()->set_presence_penalty(-3); }},
    {"frequency", "sampling.frequency_penalty", "3",
     [](Request& r) { r.mutable_sampling()->set_frequency_penalty(3); }},
    {"bias_id", "sampling.logit_bias[512]", "vocabulary",
     [](Request& r) { (*r.mutable_sampling()->mutable_logit_bias())[512] = 1; }},
    {"bias_value", "sampling.logit_bias[5]", "101",
     [](Request& r) { (*r.mutable_sampling()->mutable_logit_bias())[5] = 101; }},
    {"bias_count", "sampling.logit_bias", "4097",
     [](Request& r) {
       for (uint32_t i = 0; i < 4097; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
     }},
    {"stop_count", "stopping.stop", "17",
     [](Request& r) {
       for (int i = 0; i < 17; ++i) r.mutable_stopping()->add_stop("x");
     }},
    {"stop_empty", "stopping.stop[1]", "empty",
     [](Request& r) {
       r.mutable_stopping()->add_stop("x");
       r.mutable_stopping()->add_stop("");
     }},
    {"stop_long", "stopping.stop[0]", "1025",
     [](Request& r) { r.mutable_stopping()->add_stop(std::string(1025, 'x')); }},
    {"stop_token", "stopping.stop_token_ids[0]", "600",
     [](Request& r) { r.mutable_stopping()->add_stop_token_ids(600); }},
    {"stop_token_count", "stopping.stop_token_ids", "65",
     [](Request& r) {
       for (uint32_t i = 0; i < 65; ++i) r.mutable_stopping()->add_stop_token_ids(i);
     }},
    {"max_tokens", "stopping.max_tokens", "limit is 100",
     [](Request& r) { r.mutable_stopping()->set_max_tokens(98); }},
    {"max_tokens_huge", "stopping.max_tokens", "4294967298",
     [](Request& r) { r.mutable_stopping()->set_max_tokens(0xffffffffu); }},
    {"min_tokens", "stopping.min_tokens", "above the 5",
     [](Request& r) {
       r.mutable_stopping()->set_max_tokens(5);
       r.mutable_stopping()->set_min_tokens(6);
     }},
    {"prompt_too_long", "token_ids", "the prompt has 100 tokens and the context holds 100",
     [](Request& r) {
       while (r.token_ids().ids_size() < 100) r.mutable_token_ids()->add_ids(1);
     }},
    {"logprobs", "output.logprobs", "129",
     [](Request& r) { r.mutable_output()->set_logprobs(129); }},
    {"prompt_logprobs", "output.prompt_logprobs", "129",
     [](Request& r) { r.mutable_output()->set_prompt_logprobs(129); }},
    {"n", "n", "65", [](Request& r) { r.set_n(65); }},
    {"request_id", "request_id", "129",
     [](Request& r) { r.set_request_id(std::string(129, 'i')); }},
    {"tenant", "tenant", "129 bytes", [](Request& r) { r.set_tenant(std::string(129, 't')); }},
    {"cache_salt", "cache_salt", "129 bytes",
     [](Request& r) { r.set_cache_salt(std::string(129, 's')); }},
    {"priority", "priority", "9", [](Request& r) { r.set_priority(static_cast<v1::Priority>(9)); }},
};
INSTANTIATE_TEST_SUITE_P(Fields, BadFieldTest, ::testing::ValuesIn(kBadCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(AdmissionTest, ValuesOnTheEdgeAreFine) {
  Request request = Ids();
  request.set_n(64);
  request.set_request_id(std::string(128, 'i'));
  request.set_tenant(std::string(128, 't'));
  request.set_cache_salt(std::string(128, 's'));
  request.mutable_sampling()->set_temperature(100);
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_min_p(1);
  request.mutable_sampling()->set_presence_penalty(-2);
  request.mutable_sampling()->set_top_k(0xffffffffu);  // more than the vocabulary: all of it
  request.mutable_output()->set_logprobs(128);
  request.mutable_stopping()->set_max_tokens(97);  // 3 + 97 == 100
  request.mutable_stopping()->set_min_tokens(97);
  const auto admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_EQ(admitted->choices.size(), 64u);
  EXPECT_EQ(admitted->choices[0].sampling().top_k(), 512);
  EXPECT_EQ(admitted->choices[0].sampling().max_tokens(), 97);
}

TEST_F(AdmissionTest, AllBadFieldsAreNamedAtOnce) {
  Request request = Ids();
  request.mutable_sampling()->set_top_p(7);
  request.mutable_sampling()->set_temperature(-1);
  request.set_n(100);
  EXPECT_EQ(BadFields(Admit(request).status()).size(), 3u);
}

TEST_F(AdmissionTest, NeutralValuesWhereNobodySaysAnything) {
  model_->defaults = GenerationDefaults{};
  const auto admitted = Admit(Ids());
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  const auto& s = admitted->choices[0].sampling();
  EXPECT_EQ(s.temperature(), 1.0f);
  EXPECT_EQ(s.top_k(), 0);
  EXPECT_EQ(s.top_p(), 1.0f);
  EXPECT_EQ(s.min_p(), 0.0f);
  EXPECT_EQ(s.repetition_penalty(), 1.0f);
  EXPECT_EQ(s.max_tokens(), 97);  // what the context still holds
  EXPECT_EQ(s.logprobs(), -1);
  EXPECT_EQ(s.prompt_logprobs(), -1);
  EXPECT_EQ(admitted->choices[0].deadline_seconds(), 0);
}

TEST_F(AdmissionTest, TheModelsDefaultsAreTakenAndOverridden) {
  model_->defaults.do_sample = true;
  model_->defaults.temperature = 0.7f;
  model_->defaults.top_k = 64;
  model_->defaults.top_p = 0.95f;
  model_->defaults.suppress_tokens = {17};
  auto admitted = Admit(Ids());
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_EQ(admitted->choices[0].sampling().temperature(), 0.7f);
  EXPECT_EQ(admitted->choices[0].sampling().top_k(), 64);
  EXPECT_EQ(admitted->choices[0].sampling().top_p(), 0.95f);
  EXPECT_THAT(admitted->choices[0].sampling().suppressed(), ElementsAre(17));
  Request request = Ids();
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_EQ(admitted->choices[0].sampling().temperature(), 0.0f);
  EXPECT_EQ(admitted->choices[0].sampling().top_k(), 0);
  model_->defaults.do_sample = false;  // a greedy model
  admitted = Admit(Ids());
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_EQ(admitted->choices[0].sampling().temperature(), 0.0f);
}

TEST_F(AdmissionTest, StopIdsAreTheModelsAndTheRequests) {
  model_->eos_ids = {1, 106};
  Request request = Ids();
  request.mutable_stopping()->add_stop_token_ids(106);
  request.mutable_stopping()->add_stop_token_ids(9);
  auto admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_THAT(admitted->choices[0].sampling().stop_ids(), ElementsAre(1, 106, 9));
  request.mutable_stopping()->set_ignore_eos(true);
  admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_THAT(admitted->choices[0].sampling().stop_ids(), ElementsAre(106, 9));
  EXPECT_TRUE(admitted->choices[0].sampling().ignore_eos());
}

TEST_F(AdmissionTest, SeedsAreTheClientsOrDrawnOncePerRequest) {
  Request request = Ids();
  request.set_n(2);
  const auto a = Admit(request), b = Admit(request);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->choices[0].sampling().seed(), a->choices[1].sampling().seed());
  EXPECT_NE(a->choices[0].sampling().seed(), b->choices[0].sampling().seed());
  EXPECT_NE(a->client_id, b->client_id);
  request.mutable_sampling()->set_seed(0);  // said, though zero
  const auto c = Admit(request);
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c->choices[0].sampling().seed(), 0u);
}

TEST_F(AdmissionTest, ControlTokensInTextStayText) {
  Request request;
  request.set_text("<eos>");
  const auto admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  const auto& prompt = admitted->choices[0].prompt();
  EXPECT_EQ(prompt[0], 2u);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 1u), 0) << "the user smuggled in <eos>";
}

TEST_F(AdmissionTest, EmptyTextIsBosAlone) {
  Request request;
  request.set_text("");
  const auto admitted = Admit(request);
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_THAT(admitted->choices[0].prompt(), ElementsAre(2));
}

TEST_F(AdmissionTest, TheDeadlineIsPassedOnAsWhatIsLeft) {
  deadline_ = absl::FromUnixSeconds(1000) + absl::Milliseconds(2500);
  auto admitted = Admit(Ids());
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_EQ(admitted->choices[0].deadline_seconds(), 2.5);
  deadline_ = absl::FromUnixSeconds(999);  // just passed: still not "no limit"
  admitted = Admit(Ids());
  ASSERT_TRUE(admitted.ok()) << admitted.status();
  EXPECT_GT(admitted->choices[0].deadline_seconds(), 0);
}

TEST_F(AdmissionTest, PrefixesAreSharedWithinTenantAndSaltAlone) {
  const auto submit = [this](const char* tenant, const char* salt) {
    Request request = Ids();
    request.set_tenant(tenant);
    request.set_cache_salt(salt);
    request.set_priority(v1::PRIORITY_BATCH);
    return Admit(request)->choices[0];
  };
  const cluster::v1::Submit one = submit("ab", "c");
  EXPECT_EQ(one.tenant(), "ab");
  EXPECT_TRUE(one.batch());
  EXPECT_EQ(one.cache_key(), submit("ab", "c").cache_key());
  std::set<std::string> keys = {one.cache_key()};
  keys.insert(submit("a", "bc").cache_key());
  keys.insert(submit("abc", "").cache_key());
  keys.insert(submit("", "abc").cache_key());
  keys.insert(submit("", "").cache_key());
  keys.insert(submit("ab", "d").cache_key());
  // A tenant's name cannot imitate the length in front of another's.
  keys.insert(submit("2:ab", "c").cache_key());
  EXPECT_EQ(keys.size(), 7u);
}

TEST_F(AdmissionTest, AnUnknownChatTemplateIsRefused) {
  model_->chat_format = ChatFormat::kUnknown;
  Request request;
  request.mutable_chat()->add_messages()->set_role("user");
  const auto admitted = Admit(request);
  EXPECT_EQ(admitted.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(admitted.status()), "UNKNOWN_CHAT_TEMPLATE");
}

}  // namespace
}  // namespace lapidary
