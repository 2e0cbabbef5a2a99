#include "cli/generate_request.h"

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the prompt file ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void AddMessage(const std::string& role, const std::string& text, v1::Chat* chat) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->add_content()->set_text(text);
}

}  // namespace

v1::GenerateRequest BuildOptions(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  request.set_model(flags.model);
  request.set_n(flags.n);
  if (flags.priority == "batch") request.set_priority(v1::PRIORITY_BATCH);
  request.set_tenant(flags.tenant);
  request.set_cache_salt(flags.cache_salt);
  v1::SamplingOptions& s = *request.mutable_sampling();
  if (flags.temperature) s.set_temperature(*flags.temperature);
  if (flags.top_k) s.set_top_k(*flags.top_k);
  if (flags.top_p) s.set_top_p(*flags.top_p);
  if (flags.min_p) s.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) s.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) s.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) s.set_frequency_penalty(*flags.frequency_penalty);
  if (flags.seed) s.set_seed(*flags.seed);
  for (const auto& entry : flags.logit_bias) (*s.mutable_logit_bias())[entry.first] = entry.second;
  v1::StoppingOptions& stop = *request.mutable_stopping();
  stop.set_max_tokens(flags.max_tokens);
  stop.set_min_tokens(flags.min_tokens);
  stop.set_ignore_eos(flags.ignore_eos);
  for (const std::string& text : flags.stop) stop.add_stop(text);
  for (const uint32_t id : flags.stop_token_ids) stop.add_stop_token_ids(id);
  v1::OutputOptions& output = *request.mutable_output();
  if (flags.logprobs) output.set_logprobs(*flags.logprobs);
  if (flags.prompt_logprobs) output.set_prompt_logprobs(*flags.prompt_logprobs);
  output.set_keep_special_tokens(flags.keep_special);
  return request;
}

absl::StatusOr<v1::GenerateRequest> BuildGenerateRequest(const GenerateFlags& flags) {
  const int kinds = flags.prompt.has_value() + !flags.prompt_file.empty() + flags.has_prompt_ids +
                    !flags.chat.empty();
  if (kinds != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("give exactly one of --prompt, --prompt-file, --prompt-ids and --chat (",
                     kinds, " given)"));
  }
  v1::GenerateRequest request = BuildOptions(flags);
  if (flags.has_prompt_ids) {
    for (const uint32_t id : flags.prompt_ids) request.mutable_token_ids()->add_ids(id);
  } else if (!flags.chat.empty()) {
    if (!flags.system.empty()) AddMessage("system", flags.system, request.mutable_chat());
    AddMessage("user", flags.chat, request.mutable_chat());
    request.mutable_chat()->set_enable_thinking(flags.thinking);
  } else if (flags.prompt.has_value()) {
    request.set_text(*flags.prompt);
  } else {
    ASSIGN_OR_RETURN(*request.mutable_text(), ReadPromptFile(flags.prompt_file));
  }
  return request;
}

}  // namespace lapidary
