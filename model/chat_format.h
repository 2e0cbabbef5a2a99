// Chat messages to the prompt a Gemma model was trained on, rendered natively (no Jinja).
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "model/tokenizer.h"

namespace lapidary {

enum class ChatFormat {
  kGemma4Big,    // 12B, 26B-A4B, 31B: an empty thought block when thinking is off
  kGemma4Small,  // E2B, E4B
  kGemma3,
  kUnknown,
};

struct ChatPart {
  enum class Kind { kText, kImage, kAudio, kVideo };
  Kind kind = Kind::kText;
  std::string text;
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments_json;  // a JSON object, as text; order and number forms are kept
};

struct ChatMessage {
  std::string role;  // system, developer, user, assistant, tool
  std::vector<ChatPart> parts;
  bool content_is_string = true;  // false: a part list (matters for white space)
  bool content_is_null = false;
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
  std::string tool_call_id;  // role tool
  std::string name;          // role tool
  // Legacy mapping results: {name, response as JSON text}.
  struct ToolResponse {
    std::string name;
    std::string response_json;
  };
  std::vector<ToolResponse> tool_responses;
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::vector<std::string> tools_json;  // one OpenAI function schema each
  bool add_generation_prompt = true;
  bool enable_thinking = false;
  bool preserve_thinking = false;
};

// A rendered prompt in segments, so that the renderer's markers become control tokens while a
// user's text can not smuggle one in.
struct PromptSegment {
  std::string text;
  bool trusted = false;  // true: markers inside are parsed as special tokens
};

// Everything the template itself writes is trusted; everything from the request (text, names, keys,
// numbers) is not. INVALID_ARGUMENT names the message and field.
absl::StatusOr<std::vector<PromptSegment>> RenderChat(ChatFormat format,
                                                      const ChatRequest& request);
// The template's text.
std::string Join(const std::vector<PromptSegment>& segments);
// The ids of that text, except that markers count only within trusted segments. BOS is among them.
std::vector<TokenId> EncodeSegments(const Tokenizer& tokenizer,
                                    const std::vector<PromptSegment>& segments);

// Which format a checkpoint's stored template is; kUnknown for one never seen (the caller warns and
// names it). An empty template is decided by the model: `family_default`.
ChatFormat RecognizeTemplate(std::string_view jinja_source, ChatFormat family_default);
// The built-in format whose markers an unknown template uses, so that a chat can still be served
// after the warning; kUnknown when it has neither Gemma 4's nor Gemma 3's.
ChatFormat NearestFormat(std::string_view jinja_source, ChatFormat family_default);
// In lower-case hex: the template's name in that warning.
std::string TemplateSha256(std::string_view jinja_source);

}  // namespace lapidary
