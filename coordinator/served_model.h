// The model a coordinator answers for: what admission, detokenising and the model RPCs read. No
// weights. Immutable after loading, shared by all threads.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "coordinator/config.h"
#include "model/chat_format.h"
#include "model/checkpoint.h"
#include "model/model_spec.h"
#include "model/tokenizer.h"

namespace lapidary {

struct ServedModel {
  // Reads the checkpoint's description; a missing tokenizer is fine (token ids only), a malformed
  // one is an error.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const CoordinatorConfig& config);

  // OK for the served name and for "". Else NOT_FOUND with ResourceInfo.
  absl::Status CheckName(const std::string& requested) const;
  // FAILED_PRECONDITION when there is no tokenizer; `what` says who asks ("text input").
  absl::Status NeedTokenizer(const std::string& what) const;
  // A token's piece for score tables: as the vocabulary stores it, always valid UTF-8.
  std::string TokenName(TokenId id) const;

  std::string name;
  std::string compute;  // resolved: fp32, bf16 or int8
  int tensor_parallel = 1;
  ModelSpec spec;
  GenerationDefaults defaults;
  std::vector<TokenId> eos_ids;  // end a choice unless ignore_eos
  int64_t parameter_count = 0;   // stored elements that take part; 0 for a config.json alone
  int64_t max_context = 0;       // asked for, else the model's; a ready group may hold less
  std::unique_ptr<Tokenizer> tokenizer;  // null: the checkpoint has none
  ChatFormat chat_format = ChatFormat::kUnknown;
  // Ends of a tool call (Gemma 4), where the vocabulary has them.
  std::optional<TokenId> tool_call_end;
  std::optional<TokenId> tool_response_begin;
};

// "gemma4", "gemma4-small", "gemma3" or "unknown".
const char* ChatFormatName(ChatFormat format);

// Invalid bytes become U+FFFD, one per byte: protobuf strings must be UTF-8.
std::string ToValidUtf8(std::string_view text);

}  // namespace lapidary
