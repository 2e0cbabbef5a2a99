// absl::Status <-> grpc::Status. The codes are the same numbers; error details (error_details.h)
// travel as a serialised google.rpc.Status, which clients see as grpc-status-details-bin.
#pragma once
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace lapidary {

grpc::Status ToGrpcStatus(const absl::Status& status);

// Unreadable details are dropped: code and message still say what happened.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace lapidary
