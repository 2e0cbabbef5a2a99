// Loads an OpenAI-compatible server: POST /v1/completions with a streamed answer, prompts as token
// ids.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/bench/client.h"

namespace lapidary {

// Resolves the address and asks /v1/models which model there is, if options.model is empty (it is
// filled in). UNAVAILABLE where nothing answers; INVALID_ARGUMENT for an URL that is not
// http://HOST:PORT[/base].
absl::StatusOr<std::unique_ptr<BenchClient>> ConnectHttpBenchClient(const std::string& url,
                                                                    AskOptions* options);

}  // namespace lapidary
