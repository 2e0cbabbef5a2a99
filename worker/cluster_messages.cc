#include "worker/cluster_messages.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

namespace wire = cluster::v1;

TokenId ToTokenId(uint32_t id) {
  return id > uint32_t{std::numeric_limits<int32_t>::max()} ? -1 : static_cast<TokenId>(id);
}

SamplingParams FromMessage(const wire::Sampling& m) {
  SamplingParams p;
  p.temperature = m.temperature();
  p.top_k = m.top_k();
  p.top_p = m.top_p();
  p.min_p = m.min_p();
  p.repetition_penalty = m.repetition_penalty();
  p.presence_penalty = m.presence_penalty();
  p.frequency_penalty = m.frequency_penalty();
  for (const auto& bias : m.logit_bias()) {
    p.logit_bias.emplace_back(ToTokenId(bias.first), bias.second);
  }
  // A protobuf map has no order; the ranks' sampling must not depend on one.
  std::sort(p.logit_bias.begin(), p.logit_bias.end());
  for (const uint32_t id : m.suppressed()) p.suppressed.push_back(ToTokenId(id));
  p.seed = m.seed();
  for (const uint32_t id : m.stop_ids()) p.stop_ids.push_back(ToTokenId(id));
  p.ignore_eos = m.ignore_eos();
  p.min_tokens = m.min_tokens();
  p.max_tokens = m.max_tokens();
  p.logprobs = m.logprobs();
  p.prompt_logprobs = m.prompt_logprobs();
  return p;
}

void FillScored(const ScoredToken& token, wire::Scored* m) {
  m->set_id(static_cast<uint32_t>(token.id));
  m->set_logprob(token.logprob);
  for (const TokenLogprob& top : token.top) {
    m->add_top_ids(static_cast<uint32_t>(top.id));
    m->add_top_logprobs(top.logprob);
  }
}

wire::Finish ToFinish(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return wire::FINISH_UNSPECIFIED;
    case FinishReason::kStop:
      return wire::FINISH_STOP;
    case FinishReason::kLength:
      return wire::FINISH_LENGTH;
    case FinishReason::kCancelled:
      return wire::FINISH_CANCELLED;
    case FinishReason::kError:
      return wire::FINISH_ERROR;
  }
  return wire::FINISH_ERROR;
}

}  // namespace

EngineRequest FromMessage(const wire::Submit& submit) {
  EngineRequest request;
  NewSequence& sequence = request.sequence;
  sequence.id = RequestId{submit.id()};
  sequence.choice = submit.choice();
  sequence.tokens.reserve(submit.prompt_size() + submit.generated_prefix_size());
  for (const uint32_t id : submit.prompt()) sequence.tokens.push_back(ToTokenId(id));
  for (const uint32_t id : submit.generated_prefix()) sequence.tokens.push_back(ToTokenId(id));
  sequence.prompt_len = submit.prompt_size();
  sequence.sampling = FromMessage(submit.sampling());
  request.priority = submit.batch() ? Priority::kBatch : Priority::kInteractive;
  request.tenant = submit.tenant();
  request.cache_key = submit.cache_key();
  // Written so that NaN is no deadline.
  request.deadline = submit.deadline_seconds() > 0 ? submit.deadline_seconds() : 0;
  return request;
}

absl::Status CheckRequest(int64_t vocab, EngineRequest* request) {
  NewSequence& sequence = request->sequence;
  for (size_t i = 0; i < sequence.tokens.size(); ++i) {
    if (sequence.tokens[i] >= 0 && sequence.tokens[i] < vocab) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("token %d at position %d of request %d is outside the vocabulary of %d",
                        sequence.tokens[i], i, sequence.id.value, vocab));
  }
  SamplingParams& p = sequence.sampling;
  std::erase_if(p.suppressed, [vocab](TokenId id) { return id < 0 || id >= vocab; });
  for (const auto& bias : p.logit_bias) {
    if (bias.first >= 0 && bias.first < vocab && std::isfinite(bias.second)) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("request %d: a logit bias of %g for token %d in a vocabulary of %d",
                        sequence.id.value, bias.second, bias.first, vocab));
  }
  const bool sane = p.temperature >= 0 && std::isfinite(p.temperature) && p.top_k >= 0 &&
                    p.top_p >= 0 && p.top_p <= 1 && p.min_p >= 0 && p.min_p <= 1 &&
                    p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty) &&
                    std::isfinite(p.presence_penalty) && std::isfinite(p.frequency_penalty);
  if (!sane) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "request %d: temperature %g, top_k %d, top_p %g, min_p %g or penalties %g, %g, %g are out "
        "of range",
        sequence.id.value, p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty,
        p.presence_penalty, p.frequency_penalty));
  }
  return absl::OkStatus();
}

wire::StepEvents ToMessage(uint64_t step, const std::vector<EngineEvent>& events) {
  wire::StepEvents message;
  FillMessage(step, events, &message);
  return message;
}

void FillMessage(uint64_t step, const std::vector<EngineEvent>& events, wire::StepEvents* message) {
  message->Clear();  // keeps what was allocated
  message->set_step(step);
  for (const EngineEvent& event : events) {
    wire::RequestEvent* m = message->add_events();
    m->set_id(event.id.value);
    for (const ScoredToken& token : event.tokens) FillScored(token, m->add_tokens());
    for (const ScoredToken& token : event.prompt_scored) FillScored(token, m->add_prompt_scores());
    m->set_finish(ToFinish(event.finish));
    if (event.finish == FinishReason::kStop && event.stop_id >= 0) {
      m->set_stop_id(static_cast<uint32_t>(event.stop_id));
    }
    if (event.finish == FinishReason::kError) {
      m->set_error_code(static_cast<int>(event.error.code()));
      m->set_error_message(std::string(event.error.message()));
    }
    if (event.queue_seconds >= 0) m->set_queue_seconds(event.queue_seconds);
    if (event.cached_tokens >= 0) {
      m->set_cached_tokens(static_cast<uint32_t>(event.cached_tokens));
    }
    m->set_retry_after_seconds(event.retry_after_seconds);
  }
}

wire::Load ToMessage(const EngineStats& stats) {
  wire::Load m;
  m.set_waiting(static_cast<uint32_t>(stats.waiting));
  m.set_running(static_cast<uint32_t>(stats.running));
  m.set_sliding_pages_used(static_cast<uint32_t>(stats.pages_used[0]));
  m.set_global_pages_used(static_cast<uint32_t>(stats.pages_used[1]));
  m.set_preemptions(stats.preemptions);
  m.set_waiting_tokens(static_cast<uint64_t>(stats.waiting_tokens));
  m.set_steps(stats.steps);
  m.set_decode_rows(stats.decode_rows);
  m.set_prefill_tokens(stats.prefill_tokens);
  m.set_waiting_batch(static_cast<uint32_t>(stats.waiting_batch));
  m.set_running_batch(static_cast<uint32_t>(stats.running_batch));
  m.set_sliding_pages_cached(static_cast<uint32_t>(stats.pages_cached[0]));
  m.set_global_pages_cached(static_cast<uint32_t>(stats.pages_cached[1]));
  m.set_recomputed_tokens(stats.recomputed_tokens);
  m.set_prefix_lookup_tokens(stats.prefix_lookup_tokens);
  m.set_prefix_hit_tokens(stats.prefix_hit_tokens);
  m.set_paused(static_cast<uint32_t>(stats.paused));
  m.set_prefix_evicted_pages(stats.prefix_evicted_pages);
  return m;
}

absl::StatusOr<ComputeType> ParseComputeType(std::string_view name) {
  if (name == "fp32") return ComputeType::kFp32;
  if (name == "bf16") return ComputeType::kBf16;
  if (name == "int8") return ComputeType::kInt8;
  if (name == "fp8") return ComputeType::kFp8;
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no arithmetic: fp32, bf16, int8 or fp8", name));
}

}  // namespace lapidary
