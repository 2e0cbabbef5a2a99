// Gemma 4's chat template (the canonical version of 2026-07-09), by its own order of decisions.
#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/internal/chat_format_values.h"

namespace lapidary::internal {
namespace {

constexpr std::string_view kChannelOpen = "<|channel>";
constexpr std::string_view kChannelClose = "<channel|>";

// Text without its thoughts: of each piece before a closer, what stands before the first opener.
// An opener without a closer takes the rest with it.
std::string StripThoughts(std::string_view text) {
  std::string kept;
  while (true) {
    const size_t close = text.find(kChannelClose);
    const std::string_view piece = text.substr(0, close);
    kept += piece.substr(0, piece.find(kChannelOpen));
    if (close == std::string_view::npos) break;
    text.remove_prefix(close + kChannelClose.size());
  }
  return std::string(Strip(kept));
}

std::string_view Placeholder(ChatPart::Kind kind) {
  switch (kind) {
    case ChatPart::Kind::kText:
      break;
    case ChatPart::Kind::kImage:
      return "<|image|>";
    case ChatPart::Kind::kAudio:
      return "<|audio|>";
    case ChatPart::Kind::kVideo:
      return "<|video|>";
  }
  return {};
}

std::string JoinedText(const ChatMessage& message) {
  std::string text;
  for (const ChatPart& part : message.parts) {
    if (part.kind == ChatPart::Kind::kText) text += part.text;
  }
  return text;
}

class Gemma4Renderer {
 public:
  Gemma4Renderer(bool big, const ChatRequest& request) : big_(big), request_(request) {}

  absl::StatusOr<std::vector<PromptSegment>> Render() {
    out_.Syntax("<bos>");
    RETURN_IF_ERROR(Head());
    const int count = static_cast<int>(request_.messages.size());
    for (int i = first_; i < count; ++i) {
      if (request_.messages[i].role == "user") last_user_ = i;
    }
    for (int i = first_; i < count; ++i) {
      if (request_.messages[i].role.empty()) {
        return absl::InvalidArgumentError(absl::StrFormat("messages[%d].role is empty", i));
      }
      if (request_.messages[i].role != "tool") RETURN_IF_ERROR(Message(i));
    }
    if (request_.add_generation_prompt) GenerationPrompt();
    return out_.Take();
  }

 private:
  enum class Last { kOther, kCall, kResponse };  // what the last rendered message ended in

  // The system turn: thinking switch, system text, declarations.
  absl::Status Head() {
    const std::vector<ChatMessage>& messages = request_.messages;
    const bool system =
        !messages.empty() && (messages[0].role == "system" || messages[0].role == "developer");
    if (!request_.enable_thinking && request_.tools_json.empty() && !system) {
      return absl::OkStatus();
    }
    out_.Syntax("<|turn>system\n");
    if (request_.enable_thinking) out_.Syntax("<|think|>\n");
    if (system) {
      first_ = 1;
      if (messages[0].content_is_string) {
        out_.Data(Strip(JoinedText(messages[0])));
      } else if (!messages[0].content_is_null) {
        for (const ChatPart& part : messages[0].parts) {
          out_.Data(Strip(part.text));
          out_.Data(" ");
        }
      }
    }
    for (size_t i = 0; i < request_.tools_json.size(); ++i) {
      const std::string where = absl::StrFormat("tools[%d]", i);
      ASSIGN_OR_RETURN(const Json tool, ParseJson(request_.tools_json[i], where));
      out_.Syntax("<|tool>");
      RETURN_IF_ERROR(WriteDeclaration(tool, where, &out_));
      out_.Syntax("<tool|>");
    }
    out_.Syntax("<turn|>\n");
    return absl::OkStatus();
  }

  absl::Status Message(int index) {
    const ChatMessage& message = request_.messages[index];
    const bool model = message.role == "assistant" || message.role == "model";
    if (!(model && previous_role_ == "assistant")) {
      out_.Syntax("<|turn>");
      if (model) {
        out_.Syntax("model");
      } else if (message.role == "user" || message.role == "system") {
        out_.Syntax(message.role);
      } else {
        out_.Data(message.role);
      }
      out_.Syntax("\n");
    }
    const bool calls = !message.tool_calls.empty();
    if (!message.reasoning.empty() &&
        (index > last_user_ || (request_.preserve_thinking && calls))) {
      out_.Syntax("<|channel>thought\n");
      out_.Data(message.reasoning);
      out_.Syntax("\n<channel|>");
    }
    last_ = calls ? Last::kCall : Last::kOther;
    RETURN_IF_ERROR(Calls(index));
    bool responded = false;
    RETURN_IF_ERROR(Responses(index, &responded));
    if (responded) last_ = Last::kResponse;
    const bool has_content = Content(message, model);

    const std::string* next = NextRole(index);
    if (calls && !responded) {
      out_.Syntax("<|tool_response>");
    } else if (model && next != nullptr && *next == "assistant") {
      // The turn goes on in the next message.
    } else if (!(responded && !has_content && next == nullptr)) {
      out_.Syntax("<turn|>\n");
    }
    previous_role_ = message.role;
    return absl::OkStatus();
  }

  absl::Status Calls(int index) {
    const std::vector<ToolCall>& calls = request_.messages[index].tool_calls;
    for (size_t i = 0; i < calls.size(); ++i) {
      const std::string where = absl::StrFormat("messages[%d].tool_calls[%d].arguments", index, i);
      out_.Syntax("<|tool_call>call:");
      out_.Data(calls[i].name);
      out_.Syntax("{");
      if (!Strip(calls[i].arguments_json).empty()) {
        ASSIGN_OR_RETURN(const Json arguments, ParseJson(calls[i].arguments_json, where));
        if (!arguments.is_object() && !arguments.is_null()) {
          return absl::InvalidArgumentError(
              absl::StrFormat("%s is not a JSON object but %s", where, arguments.type_name()));
        }
        if (arguments.is_object()) out_.Members(arguments, /*quoted_keys=*/false);
      }
      out_.Syntax("}<tool_call|>");
    }
    return absl::OkStatus();
  }

  // The results that belong to this message: its own legacy list, or the tool messages behind it.
  absl::Status Responses(int index, bool* responded) {
    const std::vector<ChatMessage>& messages = request_.messages;
    const ChatMessage& message = messages[index];
    for (size_t i = 0; i < message.tool_responses.size(); ++i) {
      const auto& legacy = message.tool_responses[i];
      Json response;
      if (!Strip(legacy.response_json).empty()) {
        ASSIGN_OR_RETURN(
            response,
            ParseJson(legacy.response_json,
                      absl::StrFormat("messages[%d].tool_responses[%d].response", index, i)));
      }
      Response(legacy.name.empty() ? "unknown" : legacy.name, response);
      *responded = true;
    }
    if (*responded || message.tool_calls.empty()) return absl::OkStatus();
    for (size_t i = index + 1; i < messages.size() && messages[i].role == "tool"; ++i) {
      const ChatMessage& result = messages[i];
      std::string name = result.name.empty() ? "unknown" : result.name;
      for (const ToolCall& call : message.tool_calls) {
        if (call.id == result.tool_call_id) name = call.name;  // also absent and absent
      }
      Response(name, result.content_is_null ? Json() : Json(JoinedText(result)));
      for (const ChatPart& part : result.parts) out_.Syntax(Placeholder(part.kind));
      *responded = true;
    }
    return absl::OkStatus();
  }

  void Response(std::string_view name, const Json& response) {
    out_.Syntax("<|tool_response>response:");
    out_.Data(name);
    out_.Syntax("{");
    if (response.is_object()) {
      out_.Members(response, /*quoted_keys=*/false);
    } else {
      out_.Syntax("value:");
      out_.Value(response, /*quoted_keys=*/false);
    }
    out_.Syntax("}<tool_response|>");
  }

  // True when anything was written.
  bool Content(const ChatMessage& message, bool model) {
    if (message.content_is_null) return false;
    const auto text = [&](std::string_view raw) {
      const std::string kept = model ? StripThoughts(raw) : std::string(Strip(raw));
      out_.Data(kept);
      return !kept.empty();
    };
    if (message.content_is_string) return text(JoinedText(message));
    bool any = false;
    for (const ChatPart& part : message.parts) {
      if (part.kind == ChatPart::Kind::kText) {
        any |= text(part.text);
      } else {
        out_.Syntax(Placeholder(part.kind));
        any = true;
      }
    }
    return any;
  }

  // Of the next message that is not a tool's; null at the end.
  const std::string* NextRole(int index) const {
    for (size_t i = index + 1; i < request_.messages.size(); ++i) {
      if (request_.messages[i].role != "tool") return &request_.messages[i].role;
    }
    return nullptr;
  }

  void GenerationPrompt() {
    switch (last_) {
      case Last::kOther:
        out_.Syntax("<|turn>model\n");
        if (big_ && !request_.enable_thinking) out_.Syntax("<|channel>thought\n<channel|>");
        break;
      case Last::kCall:
        break;
      case Last::kResponse:
        // The channel is open already: the answer begins inside the thought.
        if (request_.enable_thinking) out_.Syntax("<|channel>thought\n");
        break;
    }
  }

  const bool big_;
  const ChatRequest& request_;
  PromptWriter out_;
  int first_ = 0;       // the first message that is not the head's
  int last_user_ = -1;  // thoughts before it are dropped
  std::string previous_role_;
  Last last_ = Last::kOther;
};

}  // namespace

absl::StatusOr<std::vector<PromptSegment>> RenderGemma4(bool big, const ChatRequest& request) {
  return Gemma4Renderer(big, request).Render();
}

}  // namespace lapidary::internal
