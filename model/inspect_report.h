// The text of `lapidary inspect`: what a checkpoint is and what serving it takes.
#pragma once
#include <string>

#include "absl/status/statusor.h"

namespace lapidary {

// `path`: a checkpoint, or a config.json alone (then nothing about stored bytes). Reads metadata
// only, no weights.
absl::StatusOr<std::string> InspectReport(const std::string& path);

}  // namespace lapidary
