#include "common/error_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"

namespace lapidary {
namespace {

constexpr size_t kMaxViolations = 16;  // so that they fit gRPC's trailers

template <class Message>
std::string TypeUrl() {
  return "type.googleapis.com/" + std::string(Message::descriptor()->full_name());
}

template <class Message>
absl::Status Attach(absl::Status status, const Message& message) {
  if (!status.ok()) status.SetPayload(TypeUrl<Message>(), absl::Cord(message.SerializeAsString()));
  return status;
}

template <class Message>
std::optional<Message> Read(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<Message>());
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

absl::Status BadRequestError(std::vector<FieldViolation> violations) {
  if (violations.size() > kMaxViolations) {
    const size_t more = violations.size() - kMaxViolations + 1;
    violations.resize(kMaxViolations - 1);
    violations.push_back(FieldViolation{"...", absl::StrFormat("and %d more", more)});
  }
  google::rpc::BadRequest detail;
  for (const FieldViolation& v : violations) {
    google::rpc::BadRequest::FieldViolation* out = detail.add_field_violations();
    out->set_field(v.field);
    out->set_description(v.description);
  }
  const std::string message =
      absl::StrJoin(violations, "; ", [](std::string* out, const FieldViolation& v) {
        absl::StrAppendFormat(out, "%s: %s", v.field, v.description);
      });
  return Attach(absl::InvalidArgumentError(message), detail);
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo detail;
  const int64_t seconds = absl::ToInt64Seconds(delay);
  detail.mutable_retry_delay()->set_seconds(seconds);
  detail.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay - absl::Seconds(seconds))));
  return Attach(std::move(status), detail);
}

absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::vector<std::pair<std::string, std::string>>& metadata) {
  google::rpc::ErrorInfo detail;
  detail.set_reason(std::string(reason));
  detail.set_domain("lapidary");
  for (const auto& [key, value] : metadata) (*detail.mutable_metadata())[key] = value;
  return Attach(std::move(status), detail);
}

absl::Status WithResource(absl::Status status, std::string_view type, std::string_view name) {
  google::rpc::ResourceInfo detail;
  detail.set_resource_type(std::string(type));
  detail.set_resource_name(std::string(name));
  return Attach(std::move(status), detail);
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const auto detail = Read<google::rpc::RetryInfo>(status);
  if (!detail) return std::nullopt;
  return absl::Seconds(detail->retry_delay().seconds()) +
         absl::Nanoseconds(detail->retry_delay().nanos());
}

std::string Reason(const absl::Status& status) {
  const auto detail = Read<google::rpc::ErrorInfo>(status);
  return detail ? detail->reason() : "";
}

std::vector<FieldViolation> BadFields(const absl::Status& status) {
  std::vector<FieldViolation> out;
  const auto detail = Read<google::rpc::BadRequest>(status);
  if (!detail) return out;
  for (const auto& v : detail->field_violations()) {
    out.push_back(FieldViolation{v.field(), v.description()});
  }
  return out;
}

std::string ResourceName(const absl::Status& status) {
  const auto detail = Read<google::rpc::ResourceInfo>(status);
  return detail ? detail->resource_name() : "";
}

}  // namespace lapidary
