// From the flags of `serve` to a running LocalCluster.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/local_cluster.h"
#include "cli/options.h"

namespace lapidary {

// "auto" resolved by the file's own precision. Also refuses a checkpoint that cannot be opened or
// split so.
absl::StatusOr<std::string> ResolveCompute(const EngineFlags& engine);

// Looks at the checkpoint first, so that a bad path, tensor or rank count is one readable error and
// not that of some child; then starts the cluster. Progress goes to stderr unless `quiet`.
absl::StatusOr<std::unique_ptr<LocalCluster>> StartLocalCluster(const ServeFlags& flags,
                                                                const LogFlags& log, bool quiet);

}  // namespace lapidary
