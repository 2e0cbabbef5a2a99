#include "coordinator/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"
#include "common/error_details.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

using Violations = std::vector<FieldViolation>;

void Add(Violations* out, std::string field, std::string description) {
  out->push_back(FieldViolation{std::move(field), std::move(description)});
}

// Written so that NaN is outside every range.
void CheckRange(Violations* out, const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return;
  Add(out, field, absl::StrFormat("%g is outside %g to %g", value, low, high));
}

void CheckPositive(Violations* out, const char* field, float value, float high) {
  if (value > 0 && value <= high) return;
  Add(out, field, absl::StrFormat("%g is not above 0 and at most %g", value, high));
}

void CheckLength(Violations* out, const char* field, const std::string& text, size_t limit) {
  if (text.size() <= limit) return;
  Add(out, field, absl::StrFormat("%d bytes, the limit is %d", text.size(), limit));
}

void CheckToken(Violations* out, const std::string& field, uint32_t id, int64_t vocab) {
  if (id < vocab) return;
  Add(out, field, absl::StrFormat("token id %d is not below the vocabulary's %d", id, vocab));
}

// The client's sampling options over the model's defaults over the neutral values.
void ResolveSampling(const v1::SamplingOptions& in, const ServedModel& model,
                     cluster::v1::Sampling* out, Violations* bad) {
  const GenerationDefaults& defaults = model.defaults;
  const bool greedy_model = !defaults.do_sample.value_or(true);
  out->set_temperature(in.has_temperature() ? in.temperature()
                       : greedy_model       ? 0.0f
                                            : defaults.temperature.value_or(1.0f));
  CheckRange(bad, "sampling.temperature", out->temperature(), 0, 100);
  const int64_t top_k = in.has_top_k() ? int64_t{in.top_k()} : defaults.top_k.value_or(0);
  out->set_top_k(static_cast<int32_t>(std::clamp<int64_t>(top_k, 0, model.spec.vocab)));
  out->set_top_p(in.has_top_p() ? in.top_p() : defaults.top_p.value_or(1.0f));
  CheckPositive(bad, "sampling.top_p", out->top_p(), 1);
  out->set_min_p(in.min_p());
  CheckRange(bad, "sampling.min_p", out->min_p(), 0, 1);
  out->set_repetition_penalty(in.has_repetition_penalty() ? in.repetition_penalty() : 1.0f);
  CheckPositive(bad, "sampling.repetition_penalty", out->repetition_penalty(), 100);
  out->set_presence_penalty(in.presence_penalty());
  CheckRange(bad, "sampling.presence_penalty", out->presence_penalty(), -2, 2);
  out->set_frequency_penalty(in.frequency_penalty());
  CheckRange(bad, "sampling.frequency_penalty", out->frequency_penalty(), -2, 2);
  if (in.logit_bias_size() > kMaxLogitBias) {
    Add(bad, "sampling.logit_bias",
        absl::StrFormat("%d entries, the limit is %d", in.logit_bias_size(), kMaxLogitBias));
  } else {
    for (const auto& [id, bias] : in.logit_bias()) {
      const std::string field = absl::StrFormat("sampling.logit_bias[%d]", id);
      CheckToken(bad, field, id, model.spec.vocab);
      CheckRange(bad, field.c_str(), bias, -100, 100);
      (*out->mutable_logit_bias())[id] = bias;
    }
  }
  for (const TokenId id : defaults.suppress_tokens) out->add_suppressed(static_cast<uint32_t>(id));
}

void ResolveStopping(const v1::StoppingOptions& in, const ServedModel& model,
                     cluster::v1::Sampling* out, Violations* bad) {
  if (in.stop_size() > kMaxStopStrings) {
    Add(bad, "stopping.stop",
        absl::StrFormat("%d stop strings, the limit is %d", in.stop_size(), kMaxStopStrings));
  }
  for (int i = 0; i < std::min(in.stop_size(), kMaxStopStrings); ++i) {
    const std::string field = absl::StrFormat("stopping.stop[%d]", i);
    if (in.stop(i).empty()) Add(bad, field, "is empty");
    if (in.stop(i).size() > kMaxStopBytes) {
      Add(bad, field,
          absl::StrFormat("%d bytes, the limit is %d", in.stop(i).size(), kMaxStopBytes));
    }
  }
  if (in.stop_token_ids_size() > kMaxStopTokens) {
    Add(bad, "stopping.stop_token_ids",
        absl::StrFormat("%d ids, the limit is %d", in.stop_token_ids_size(), kMaxStopTokens));
  }
  out->set_ignore_eos(in.ignore_eos());
  if (!in.ignore_eos()) {
    for (const TokenId id : model.eos_ids) out->add_stop_ids(static_cast<uint32_t>(id));
  }
  for (int i = 0; i < std::min(in.stop_token_ids_size(), kMaxStopTokens); ++i) {
    const uint32_t id = in.stop_token_ids(i);
    CheckToken(bad, absl::StrFormat("stopping.stop_token_ids[%d]", i), id, model.spec.vocab);
    if (std::find(out->stop_ids().begin(), out->stop_ids().end(), id) == out->stop_ids().end()) {
      out->add_stop_ids(id);
    }
  }
}

int32_t ResolveLogprobs(const char* field, bool asked, uint32_t count, Violations* bad) {
  if (!asked) return -1;
  if (count > kMaxLogprobs) {
    Add(bad, field, absl::StrFormat("%d is above the limit of %d", count, kMaxLogprobs));
  }
  return static_cast<int32_t>(std::min(count, kMaxLogprobs));
}

// Prompt and output against the context, in 64 bits. Sets max_tokens and min_tokens.
void ResolveLengths(const v1::StoppingOptions& in, const char* input_field, int64_t prompt,
                    int64_t max_context, cluster::v1::Sampling* out, Violations* bad) {
  const int64_t room = max_context - prompt;
  if (room < 1) {
    Add(bad, input_field,
        absl::StrFormat("the prompt has %d tokens and the context holds %d, answer included",
                        prompt, max_context));
    return;
  }
  if (in.max_tokens() > room) {
    Add(bad, "stopping.max_tokens",
        absl::StrFormat(
            "%d after a prompt of %d tokens needs %d tokens of context, the limit is %d",
            in.max_tokens(), prompt, prompt + in.max_tokens(), max_context));
    return;
  }
  const int64_t max_tokens = in.max_tokens() > 0 ? in.max_tokens() : room;
  if (in.min_tokens() > max_tokens) {
    Add(bad, "stopping.min_tokens",
        absl::StrFormat("%d is above the %d tokens that may be generated", in.min_tokens(),
                        max_tokens));
    return;
  }
  out->set_max_tokens(static_cast<int32_t>(max_tokens));
  out->set_min_tokens(static_cast<int32_t>(in.min_tokens()));
}

// Token ids of whichever input the message has; adds violations for bad ids.
absl::StatusOr<std::vector<TokenId>> EncodeInput(const ServedModel& model,
                                                 const v1::GenerateRequest& request,
                                                 Violations* bad) {
  std::vector<TokenId> ids;
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      RETURN_IF_ERROR(model.NeedTokenizer("text input"));
      ids.push_back(model.tokenizer->bos());
      model.tokenizer->Encode(request.text(), SpecialTokens::kAsText, &ids);
      return ids;
    case v1::GenerateRequest::kTokenIds:
      if (request.token_ids().ids().empty()) Add(bad, "token_ids.ids", "is empty");
      ids.reserve(static_cast<size_t>(request.token_ids().ids_size()));
      for (int i = 0; i < request.token_ids().ids_size(); ++i) {
        const uint32_t id = request.token_ids().ids(i);
        if (id >= model.spec.vocab) {  // one is enough: a million would not fit the answer
          CheckToken(bad, absl::StrFormat("token_ids.ids[%d]", i), id, model.spec.vocab);
          break;
        }
        ids.push_back(static_cast<TokenId>(id));
      }
      return ids;
    case v1::GenerateRequest::kChat:
      return EncodeChat(model, request.chat(), nullptr);
    case v1::GenerateRequest::INPUT_NOT_SET:
      Add(bad, "input", "none of text, token_ids and chat is set");
      return ids;
  }
  return ids;
}

// Two requests share prefixes only when tenant and salt are the same; the length in front keeps
// ("ab", "c") and ("a", "bc") apart.
std::string CacheKey(const v1::GenerateRequest& request) {
  return absl::StrFormat("%d:%s%s", request.tenant().size(), request.tenant(),
                         request.cache_salt());
}

const char* InputField(const v1::GenerateRequest& request) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kTokenIds:
      return "token_ids";
    case v1::GenerateRequest::kChat:
      return "chat";
    default:
      return "text";
  }
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> EncodeChat(const ServedModel& model, const v1::Chat& chat,
                                                std::string* rendered) {
  RETURN_IF_ERROR(model.NeedTokenizer("chat input"));
  if (model.chat_format == ChatFormat::kUnknown) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrFormat(
            "the chat template of model '%s' is not one Lapidary knows: send text or token ids",
            model.name)),
        "UNKNOWN_CHAT_TEMPLATE");
  }
  if (chat.messages().empty()) {
    return BadRequestError({FieldViolation{"chat.messages", "is empty"}});
  }
  ChatRequest request;
  request.enable_thinking = chat.enable_thinking();
  request.preserve_thinking = chat.preserve_thinking();
  for (const v1::Tool& tool : chat.tools()) request.tools_json.push_back(tool.json());
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& in = chat.messages(i);
    ChatMessage message;
    message.role = in.role();
    message.reasoning = in.reasoning();
    message.tool_call_id = in.tool_call_id();
    message.name = in.name();
    message.content_is_string = in.content_size() <= 1;
    message.content_is_null = in.content().empty();
    for (int p = 0; p < in.content_size(); ++p) {
      if (in.content(p).part_case() != v1::ContentPart::kText) {
        return BadRequestError({FieldViolation{
            absl::StrFormat("chat.messages[%d].content[%d]", i, p), "has no text"}});
      }
      message.parts.push_back(ChatPart{ChatPart::Kind::kText, in.content(p).text()});
    }
    for (const v1::ToolCall& call : in.tool_calls()) {
      message.tool_calls.push_back(ToolCall{call.id(), call.name(), call.arguments_json()});
    }
    request.messages.push_back(std::move(message));
  }
  const auto segments = RenderChat(model.chat_format, request);
  if (absl::IsInvalidArgument(segments.status())) {
    return BadRequestError({FieldViolation{"chat", std::string(segments.status().message())}});
  }
  RETURN_IF_ERROR(segments.status());
  if (rendered != nullptr) *rendered = Join(*segments);
  std::vector<TokenId> ids = EncodeSegments(*model.tokenizer, *segments);
  if (ids.empty() || ids.front() != model.tokenizer->bos()) {
    ids.insert(ids.begin(), model.tokenizer->bos());
  }
  return ids;
}

uint64_t Admission::Draw() {
  absl::MutexLock lock(&mu_);
  return random_();
}

absl::StatusOr<AdmittedRequest> Admission::Admit(const v1::GenerateRequest& request,
                                                 const CallFacts& facts, int64_t max_context) {
  RETURN_IF_ERROR(model_.CheckName(request.model()));
  const v1::StoppingOptions& stopping = request.stopping();
  const v1::OutputOptions& output = request.output();
  if (!stopping.stop().empty()) RETURN_IF_ERROR(model_.NeedTokenizer("a stop string"));

  // What does not depend on the prompt first: a bad field should not cost a tokenizing.
  Violations bad;
  cluster::v1::Submit submit;
  cluster::v1::Sampling* sampling = submit.mutable_sampling();
  ResolveSampling(request.sampling(), model_, sampling, &bad);
  ResolveStopping(stopping, model_, sampling, &bad);
  sampling->set_logprobs(
      ResolveLogprobs("output.logprobs", output.has_logprobs(), output.logprobs(), &bad));
  sampling->set_prompt_logprobs(ResolveLogprobs(
      "output.prompt_logprobs", output.has_prompt_logprobs(), output.prompt_logprobs(), &bad));
  if (request.n() > kMaxChoices) {
    Add(&bad, "n", absl::StrFormat("%d is above the limit of %d", request.n(), kMaxChoices));
  }
  CheckLength(&bad, "request_id", request.request_id(), kMaxRequestIdBytes);
  CheckLength(&bad, "tenant", request.tenant(), kMaxTenantBytes);
  CheckLength(&bad, "cache_salt", request.cache_salt(), kMaxCacheSaltBytes);
  if (!v1::Priority_IsValid(request.priority())) {
    Add(&bad, "priority",
        absl::StrFormat("%d is not a known priority", static_cast<int>(request.priority())));
  }
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, EncodeInput(model_, request, &bad));
  if (!prompt.empty()) {
    ResolveLengths(stopping, InputField(request), std::ssize(prompt), max_context, sampling, &bad);
  }
  if (!bad.empty()) return BadRequestError(bad);

  AdmittedRequest out;
  out.client_id =
      request.request_id().empty() ? absl::StrFormat("req-%016x", Draw()) : request.request_id();
  out.trace_id = facts.trace.trace_id;
  out.received = facts.now;
  out.prompt_tokens = static_cast<uint32_t>(prompt.size());
  out.stream.stops.assign(stopping.stop().begin(), stopping.stop().end());
  out.stream.include_stop = stopping.include_stop();
  out.stream.skip_text = output.skip_text();
  out.stream.keep_special_tokens = output.keep_special_tokens();
  out.stream.scores = output.has_logprobs();
  out.stream.chat = request.has_chat();

  sampling->set_seed(request.sampling().has_seed() ? request.sampling().seed() : Draw());
  submit.mutable_prompt()->Assign(prompt.begin(), prompt.end());
  submit.set_client_request_id(out.client_id);
  submit.set_batch(request.priority() == v1::PRIORITY_BATCH);
  submit.set_tenant(request.tenant());
  submit.set_cache_key(CacheKey(request));
  if (facts.deadline != absl::InfiniteFuture()) {
    // 0 means no limit, so a deadline that has just passed stays positive.
    submit.set_deadline_seconds(std::max(1e-3, absl::ToDoubleSeconds(facts.deadline - facts.now)));
  }
  const uint32_t n = std::max(request.n(), 1u);
  out.choices.reserve(n);
  for (uint32_t choice = 0; choice < n; ++choice) {
    submit.set_id(next_id_.fetch_add(1, std::memory_order_relaxed));
    submit.set_choice(choice);
    submit.set_traceparent(facts.trace.Child(submit.id()));
    if (choice == 1) sampling->set_prompt_logprobs(-1);  // the same prompt is scored once
    out.choices.push_back(submit);
  }
  return out;
}

}  // namespace lapidary
