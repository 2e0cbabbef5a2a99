// `lapidary chat`: a conversation in the terminal, streamed.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/api_client.h"
#include "cli/commands.h"
#include "cli/generate_request.h"
#include "cli/local_serving.h"
#include "cli/signals.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

void AddText(const std::string& role, const std::string& text, v1::Chat* chat) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->add_content()->set_text(text);
}

// One question and its answer; both join the conversation.
absl::Status Turn(ApiClient& client, const GenerateFlags& flags, const std::string& question,
                  v1::Chat* conversation) {
  AddText("user", question, conversation);
  v1::GenerateRequest request = BuildOptions(flags);
  *request.mutable_chat() = *conversation;
  request.mutable_chat()->set_enable_thinking(flags.thinking);
  std::string answer;
  RETURN_IF_ERROR(client.Generate(request, [&answer](const v1::GenerateResponse& event) {
    if (event.has_delta()) {
      answer += event.delta().text();
      std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
      std::fflush(stdout);
    }
    return !StopRequested();
  }));
  std::fputs("\n", stdout);
  AddText("assistant", answer, conversation);
  return absl::OkStatus();
}

absl::Status Converse(const std::string& address, const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ApiClient> client,
                   ApiClient::Connect(address, absl::Seconds(10)));
  ASSIGN_OR_RETURN(const v1::Model model, client->GetModel(flags.model));
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal) {
    std::printf("%s (%s). An empty line or Ctrl-D ends.\n", model.name().c_str(),
                model.architecture().c_str());
  }
  v1::Chat conversation;
  if (!flags.system.empty()) AddText("system", flags.system, &conversation);
  std::string question;
  while (!StopRequested()) {
    if (terminal) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, question) || question.empty()) break;
    RETURN_IF_ERROR(Turn(*client, flags, question, &conversation));
  }
  return absl::OkStatus();
}

}  // namespace

int RunChat(const ChatFlags& chat) {
  const GenerateFlags& flags = chat.generate;
  return AskServerOrOwn(flags,
                        [&flags](const std::string& address) { return Converse(address, flags); });
}

}  // namespace lapidary
