// `lapidary generate`: one prompt, from a running server or from one started for the question.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "cli/api_client.h"
#include "cli/commands.h"
#include "cli/generate_request.h"
#include "cli/generation_output.h"
#include "cli/local_serving.h"
#include "cli/signals.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

absl::Status Stream(ApiClient& client, const v1::GenerateRequest& request,
                    const GenerateFlags& flags) {
  GenerationCollector collector(request.n());
  const absl::Time start = absl::Now();
  const bool streams = !flags.json && request.n() <= 1;
  if (streams && flags.echo && flags.prompt.has_value()) std::fputs(flags.prompt->c_str(), stdout);
  absl::Status status =
      client.Generate(request, [&collector, streams](const v1::GenerateResponse& event) {
        collector.Add(event, absl::Now());
        if (streams && event.has_delta()) {
          std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
          std::fflush(stdout);
        }
        return !StopRequested();
      });
  if (flags.json) {
    RETURN_IF_ERROR(status);
    std::puts(
        collector.ToJson(flags.logprobs.has_value(), flags.prompt_logprobs.has_value()).c_str());
  } else if (streams) {
    std::fputs("\n", stdout);
  } else {
    for (size_t i = 0; i < collector.choices().size(); ++i) {
      std::printf("[%zu] %s\n", i, collector.choices()[i].text.c_str());
    }
  }
  std::fflush(stdout);
  if (flags.stats) std::fprintf(stderr, "\n%s\n", collector.Summary(start).c_str());
  return status;
}

absl::Status AskServer(const std::string& address, const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ApiClient> client,
                   ApiClient::Connect(address, absl::Seconds(10)));
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, BuildGenerateRequest(flags));
  return Stream(*client, request, flags);
}

}  // namespace

int RunGenerate(const GenerateFlags& flags) {
  const absl::StatusOr<v1::GenerateRequest> request = BuildGenerateRequest(flags);
  if (!request.ok()) return Fail(request.status());
  return AskServerOrOwn(flags,
                        [&flags](const std::string& address) { return AskServer(address, flags); });
}

}  // namespace lapidary
