#include "cli/bench/check.h"

#include "absl/strings/str_format.h"

namespace lapidary {

Verdict CheckAnswer(const BenchRequest& request, const BenchAnswer& answer,
                    const CheckOptions& options) {
  const auto bad = [&request](const char* kind, const std::string& detail) {
    return Verdict{kind, absl::StrFormat("request %d: %s", request.index, detail)};
  };
  if (!answer.error_kind.empty()) return bad(answer.error_kind.c_str(), answer.error);
  if (answer.finish_reason.empty()) {
    return bad("no finish reason", absl::StrFormat("%d tokens came", answer.ArrivedTokens()));
  }
  const int64_t asked = request.output_tokens;
  const int64_t got = answer.Tokens();
  const bool whole = options.ignore_eos || answer.finish_reason == "length";
  if (got < asked && whole) {
    return bad("too few tokens",
               absl::StrFormat("%d of %d, finish reason %s", got, asked, answer.finish_reason));
  }
  if (got > asked) return bad("too many tokens", absl::StrFormat("%d of %d", got, asked));
  if (options.ignore_eos ? answer.finish_reason != "length"
                         : answer.finish_reason != "length" && answer.finish_reason != "stop") {
    return bad("wrong finish reason", answer.finish_reason);
  }
  if (!answer.completion_tokens || !answer.prompt_tokens) return bad("no usage", "none came");
  // Equal to `got` by construction where messages are not counted exactly.
  if (*answer.completion_tokens != got) {
    return bad("usage disagrees",
               absl::StrFormat("%d tokens came, %d in the usage", got, *answer.completion_tokens));
  }
  if (!answer.exact_counts && !options.loose_counts && answer.ArrivedTokens() != got) {
    return bad("uncounted tokens",
               absl::StrFormat("%d messages came, %d tokens in the usage (--loose-counts accepts "
                               "messages of several tokens)",
                               answer.ArrivedTokens(), got));
  }
  if (*answer.prompt_tokens != std::ssize(request.prompt)) {
    return bad("wrong prompt length",
               absl::StrFormat("%d in the usage, %d sent", *answer.prompt_tokens,
                               std::ssize(request.prompt)));
  }
  return {};
}

}  // namespace lapidary
