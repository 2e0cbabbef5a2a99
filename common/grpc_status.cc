#include "common/grpc_status.h"

#include <string>
#include <string_view>

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"

namespace lapidary {
namespace {

// gRPC refuses trailers above 8 KiB as a whole; a longer message tells nobody more.
constexpr size_t kMaxMessageBytes = 2048;
constexpr size_t kMaxDetailsBytes = 4096;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message(status.message().data(), status.message().size());
  if (message.size() > kMaxMessageBytes) {
    message.resize(kMaxMessageBytes);
    message += " [cut]";
  }
  google::rpc::Status rich;
  rich.set_code(static_cast<int>(status.code()));
  rich.set_message(message);
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    google::protobuf::Any* detail = rich.add_details();
    detail->set_type_url(std::string(type_url.data(), type_url.size()));
    detail->set_value(std::string(payload));
  });
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (rich.details_size() == 0) return grpc::Status(code, message);
  const std::string details = rich.SerializeAsString();
  if (details.size() > kMaxDetailsBytes) return grpc::Status(code, message);
  return grpc::Status(code, message, details);
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status rich;
  if (!status.error_details().empty() && rich.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : rich.details()) {
      out.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return out;
}

}  // namespace lapidary
