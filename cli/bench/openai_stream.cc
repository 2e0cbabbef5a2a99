#include "cli/bench/openai_stream.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

using Json = nlohmann::json;

const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> Count(const Json* object, const char* key) {
  const Json* value = object == nullptr ? nullptr : Find(*object, key);
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  return value->get<int64_t>();
}

std::string Excerpt(std::string_view text) {
  return std::string(text.substr(0, 200)) + (text.size() > 200 ? "..." : "");
}

}  // namespace

std::string CompletionBody(const BenchRequest& request, const AskOptions& options) {
  Json body = {{"model", options.model},
               {"prompt", request.prompt},
               {"max_tokens", request.output_tokens},
               {"temperature", options.temperature},
               {"seed", request.sampling_seed & 0x7fffffff},  // llama-server: 32 bits
               {"stream", true},
               {"stream_options", {{"include_usage", true}, {"continuous_usage_stats", true}}},
               {"timings_per_token", true}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  if (options.top_k > 0) body["top_k"] = options.top_k;
  if (options.top_p < 1) body["top_p"] = options.top_p;
  if (!options.extra_body.empty()) {
    body.merge_patch(Json::parse(options.extra_body, nullptr, /*allow_exceptions=*/false));
  }
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool IsJsonObject(std::string_view text) {
  return Json::parse(text, nullptr, /*allow_exceptions=*/false).is_object();
}

int64_t CompletionReader::Read(std::string_view data, BenchTime now, BenchAnswer* answer) {
  if (data == "[DONE]") {
    finished_ = true;
    return 0;
  }
  const Json event = Json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) {
    answer->error_kind = "NOT JSON";
    answer->error = "an event is no JSON object: " + Excerpt(data);
    return 0;
  }
  if (const Json* error = Find(event, "error"); error != nullptr) {
    answer->error_kind = "SERVER ERROR";
    answer->error = Excerpt(error->dump(-1, ' ', false, Json::error_handler_t::replace));
    return 0;
  }
  const Json* choices = Find(event, "choices");
  const bool has_choice = choices != nullptr && choices->is_array() && !choices->empty();
  std::string_view text;
  std::optional<int64_t> listed;  // ids in this event
  if (has_choice) {
    const Json& choice = choices->front();
    if (const Json* value = Find(choice, "text"); value != nullptr && value->is_string()) {
      text = value->get_ref<const std::string&>();
    }
    if (const Json* reason = Find(choice, "finish_reason");
        reason != nullptr && reason->is_string()) {
      answer->finish_reason = reason->get<std::string>();
    }
    if (const Json* ids = Find(choice, "token_ids"); ids != nullptr && ids->is_array()) {
      listed = std::ssize(*ids);
    }
  }
  const Json* usage = Find(event, "usage");
  if (usage != nullptr) {
    answer->prompt_tokens = Count(usage, "prompt_tokens");
    answer->completion_tokens = Count(usage, "completion_tokens");
    const Json* details = Find(*usage, "prompt_tokens_details");
    if (details != nullptr) answer->cached_tokens = Count(details, "cached_tokens");
  }
  // A usage without a choice is the stream's last word and no running count.
  std::optional<int64_t> total = Count(Find(event, "timings"), "predicted_n");
  if (!total && has_choice) total = Count(usage, "completion_tokens");
  int64_t tokens = 0;
  if (listed) {
    tokens = *listed;
  } else if (total && (has_choice || keeps_count_)) {
    tokens = *total - counted_;
  } else {
    tokens = text.empty() ? 0 : 1;
    if (tokens > 0 && !keeps_count_) answer->exact_counts = false;
  }
  keeps_count_ |= listed.has_value() || (total.has_value() && has_choice);
  if (tokens > 0) {
    counted_ += tokens;
    answer->arrivals.push_back({now, tokens});
  }
  answer->text += text;
  return std::max<int64_t>(tokens, 0);
}

void CompletionReader::End(BenchAnswer* answer) const {
  if (!answer->error_kind.empty() || finished_) return;
  answer->error_kind = "CUT OFF";
  answer->error =
      absl::StrFormat("the stream ended after %d tokens without [DONE]", answer->ArrivedTokens());
}

}  // namespace lapidary
