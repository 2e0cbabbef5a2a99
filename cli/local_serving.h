// From the flags of `serve` to a running LocalCluster.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/local_cluster.h"
#include "cli/options.h"

namespace lapidary {

// Looks at the checkpoint first, so that a bad path, tensor or rank count is one readable error and
// not that of some child; then starts the cluster. Progress goes to stderr unless `quiet`.
absl::StatusOr<std::unique_ptr<LocalCluster>> StartLocalCluster(const ServeFlags& flags,
                                                                const LogFlags& log, bool quiet);

// Calls ask with the address of the server the flags name, or of one started for the question and
// stopped after it. Prints what went wrong; the exit code (130 when interrupted).
int AskServerOrOwn(const GenerateFlags& flags,
                   const std::function<absl::Status(const std::string& address)>& ask);

}  // namespace lapidary
