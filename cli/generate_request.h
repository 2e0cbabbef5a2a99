// From the flags of `generate` and `chat` to the message the server gets.
#pragma once
#include "absl/status/statusor.h"
#include "cli/options.h"
#include "lapidary/v1/lapidary.pb.h"

namespace lapidary {

// INVALID_ARGUMENT unless exactly one kind of prompt is given; NOT_FOUND for an absent prompt file.
absl::StatusOr<v1::GenerateRequest> BuildGenerateRequest(const GenerateFlags& flags);
// Everything but the prompt.
v1::GenerateRequest BuildOptions(const GenerateFlags& flags);

}  // namespace lapidary
