// What one event of an OpenAI-compatible completion stream says.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "cli/bench/client.h"

namespace lapidary {

// The body of POST /v1/completions for one request.
//
// Beside the usual fields it asks for a running token count, which llama-server (timings_per_token)
// and vLLM (continuous_usage_stats) give; `extra` is a JSON object merged in last (RFC 7396).
std::string CompletionBody(const BenchRequest& request, const AskOptions& options);

// Whether `text` is a JSON object.
bool IsJsonObject(std::string_view text);

// Folds the events of one stream into an answer.
class CompletionReader {
 public:
  // Reads one event. Returns how many tokens it brought. After an event that is no JSON, or that
  // carries an error, answer->error_kind says so.
  int64_t Read(std::string_view data, BenchTime now, BenchAnswer* answer);
  // The stream has ended: an answer without [DONE] was cut off.
  void End(BenchAnswer* answer) const;

 private:
  int64_t counted_ = 0;  // the server's running count
  bool keeps_count_ = false, finished_ = false;
};

}  // namespace lapidary
