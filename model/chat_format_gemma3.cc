// Gemma 3's chat template: user and model in turn, the system text in front of the first user's.
#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/internal/chat_format_values.h"

namespace lapidary::internal {
namespace {

absl::Status Refuse(int index, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrFormat("messages[%d]: Gemma 3's chat format %s", index, what));
}

absl::Status WriteContent(const ChatMessage& message, int index, PromptWriter* out) {
  if (message.content_is_null) return Refuse(index, "needs content in every message");
  if (message.content_is_string) {
    std::string text;
    for (const ChatPart& part : message.parts) text += part.text;
    out->Data(Strip(text));
    return absl::OkStatus();
  }
  for (const ChatPart& part : message.parts) {
    switch (part.kind) {
      case ChatPart::Kind::kText:
        out->Data(Strip(part.text));
        break;
      case ChatPart::Kind::kImage:
        out->Syntax("<start_of_image>");
        break;
      case ChatPart::Kind::kAudio:
      case ChatPart::Kind::kVideo:
        return Refuse(index, "has neither audio nor video");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<PromptSegment>> RenderGemma3(const ChatRequest& request) {
  if (!request.tools_json.empty()) {
    return absl::InvalidArgumentError("tools: Gemma 3's chat format has none");
  }
  const std::vector<ChatMessage>& messages = request.messages;
  if (messages.empty()) return absl::InvalidArgumentError("messages is empty");
  PromptWriter out;
  out.Syntax("<bos>");
  const bool system = messages[0].role == "system" || messages[0].role == "developer";
  const int first = system ? 1 : 0;
  for (int i = first; i < static_cast<int>(messages.size()); ++i) {
    const ChatMessage& message = messages[i];
    if (!message.tool_calls.empty() || !message.tool_responses.empty()) {
      return Refuse(i, "has no tools");
    }
    const bool user = (i - first) % 2 == 0;
    if (message.role != (user ? "user" : "assistant")) {
      return Refuse(i, absl::StrFormat("alternates user and assistant: %s is due, not \"%s\"",
                                       user ? "user" : "assistant", message.role));
    }
    out.Syntax(user ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
    if (i == 1 && system) {
      // Not stripped, and of a part list the first alone: as the template has it.
      const std::vector<ChatPart>& parts = messages[0].parts;
      if (messages[0].content_is_null) return Refuse(0, "needs content in every message");
      if (messages[0].content_is_string) {
        for (const ChatPart& part : parts) out.Data(part.text);
      } else if (!parts.empty()) {
        out.Data(parts[0].text);
      }
      out.Data("\n\n");
    }
    RETURN_IF_ERROR(WriteContent(message, i, &out));
    out.Syntax("<end_of_turn>\n");
  }
  if (request.add_generation_prompt) out.Syntax("<start_of_turn>model\n");
  return out.Take();
}

}  // namespace lapidary::internal
