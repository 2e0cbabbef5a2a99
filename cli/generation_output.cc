#include "cli/generation_output.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

using Json = nlohmann::ordered_json;

const char* Name(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_TOOL_CALLS:
      return "tool_calls";
    default:
      return "unknown";
  }
}

Json Logprobs(const std::vector<v1::TokenScore>& scores) {
  Json out = Json::array();
  for (const v1::TokenScore& score : scores) out.push_back(score.logprob());
  return out;
}

Json TopLogprobs(const std::vector<v1::TokenScore>& scores) {
  Json out = Json::array();
  for (const v1::TokenScore& score : scores) {
    Json row = Json::array();
    for (const v1::TokenAlternative& t : score.top()) {
      row.push_back({{"id", t.id()}, {"token", t.token()}, {"logprob", t.logprob()}});
    }
    out.push_back(std::move(row));
  }
  return out;
}

Json ToObject(const CollectedChoice& choice, bool with_logprobs) {
  Json out;
  out["text"] = choice.text;
  out["token_ids"] = choice.token_ids;
  out["logprobs"] = with_logprobs ? Logprobs(choice.scores) : Json(nullptr);
  out["top_logprobs"] = with_logprobs ? TopLogprobs(choice.scores) : Json(nullptr);
  return out;
}

}  // namespace

void GenerationCollector::Add(const v1::GenerateResponse& event, absl::Time now) {
  request_id_ = event.request_id();
  switch (event.event_case()) {
    case v1::GenerateResponse::kDelta: {
      const v1::Delta& delta = event.delta();
      if (delta.choice() >= choices_.size()) return;
      CollectedChoice& choice = choices_[delta.choice()];
      choice.text += delta.text();
      choice.token_ids.insert(choice.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
      choice.scores.insert(choice.scores.end(), delta.scores().begin(), delta.scores().end());
      if (delta.token_ids_size() > 0) {
        first_token_ = std::min(first_token_, now);
        last_token_ = now;
      }
      return;
    }
    case v1::GenerateResponse::kChoiceFinished: {
      const v1::ChoiceFinished& finished = event.choice_finished();
      if (finished.choice() >= choices_.size()) return;
      choices_[finished.choice()].finish_reason = Name(finished.reason());
      choices_[finished.choice()].stop = finished.stop();
      return;
    }
    case v1::GenerateResponse::kUsage:
      usage_ = event.usage();
      return;
    case v1::GenerateResponse::kPromptScores:
      prompt_scores_.insert(prompt_scores_.end(), event.prompt_scores().scores().begin(),
                            event.prompt_scores().scores().end());
      return;
    case v1::GenerateResponse::EVENT_NOT_SET:
      return;
  }
}

std::string GenerationCollector::ToJson(bool with_logprobs, bool with_prompt_logprobs) const {
  Json out = ToObject(choices_[0], with_logprobs);
  if (with_prompt_logprobs) {
    Json prompt = Json::array({nullptr});  // nothing precedes the first token
    for (const v1::TokenScore& score : prompt_scores_) prompt.push_back(score.logprob());
    out["prompt_logprobs"] = std::move(prompt);
    bool any_top = false;
    for (const v1::TokenScore& score : prompt_scores_) any_top |= score.top_size() > 0;
    if (any_top) out["prompt_top_logprobs"] = TopLogprobs(prompt_scores_);
  } else {
    out["prompt_logprobs"] = nullptr;
  }
  out["finish_reason"] = choices_[0].finish_reason;
  out["usage"] = {{"prompt_tokens", usage_.prompt_tokens()},
                  {"completion_tokens", usage_.completion_tokens()},
                  {"total_tokens", usage_.total_tokens()},
                  {"cached_prompt_tokens", usage_.cached_prompt_tokens()}};
  out["request_id"] = request_id_;
  if (choices_.size() > 1) {
    Json all = Json::array();
    for (const CollectedChoice& choice : choices_) {
      Json one = ToObject(choice, with_logprobs);
      one["finish_reason"] = choice.finish_reason;
      all.push_back(std::move(one));
    }
    out["choices"] = std::move(all);
  }
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string GenerationCollector::Summary(absl::Time start) const {
  size_t tokens = 0;
  for (const CollectedChoice& choice : choices_) tokens += choice.token_ids.size();
  if (tokens == 0) return "no tokens";
  std::string out = absl::StrFormat("%d prompt tokens, first token after %.0f ms; %d tokens",
                                    usage_.prompt_tokens(),
                                    absl::ToDoubleMilliseconds(first_token_ - start), tokens);
  const double seconds = absl::ToDoubleSeconds(last_token_ - first_token_);
  if (tokens > 1 && seconds > 0) {
    out += absl::StrFormat(", then %.1f tokens/s",
                           static_cast<double>(tokens - choices_.size()) / seconds);
  }
  return out;
}

}  // namespace lapidary
