// Loads a Lapidary server over its public gRPC API.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/bench/client.h"

namespace lapidary {

// Connects within 10 s; UNAVAILABLE names the address otherwise.
absl::StatusOr<std::unique_ptr<BenchClient>> ConnectGrpcBenchClient(const std::string& address,
                                                                    const AskOptions& options);

}  // namespace lapidary
