// google.rpc error details on an absl::Status: what a program needs beside the message.
//
// They ride as status payloads, so every layer can add one without knowing gRPC; ToGrpcStatus()
// turns them into grpc-status-details-bin, FromGrpcStatus() back.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace lapidary {

// One bad field of a request.
struct FieldViolation {
  std::string field;        // path in the request, e.g. "sampling.top_p"
  std::string description;  // why it is bad
};

// INVALID_ARGUMENT naming every bad field (the first 15 and a count, when there are more), in the
// message and as BadRequest.
absl::Status BadRequestError(std::vector<FieldViolation> violations);

// Each returns the status with one more detail; an OK status stays as it is.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::vector<std::pair<std::string, std::string>>& metadata = {});
absl::Status WithResource(absl::Status status, std::string_view type, std::string_view name);

// What a status carries; empty or nothing when it does not.
std::optional<absl::Duration> RetryAfter(const absl::Status& status);
std::string Reason(const absl::Status& status);
std::vector<FieldViolation> BadFields(const absl::Status& status);
std::string ResourceName(const absl::Status& status);

}  // namespace lapidary
