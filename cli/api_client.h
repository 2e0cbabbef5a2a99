// The CLI's view of a coordinator: the public API over gRPC, statuses turned into readable errors.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lapidary/v1/lapidary.pb.h"

namespace lapidary {

class ApiClient {
 public:
  // Connects within `timeout`; UNAVAILABLE names the address otherwise.
  static absl::StatusOr<std::unique_ptr<ApiClient>> Connect(const std::string& address,
                                                            absl::Duration timeout);
  virtual ~ApiClient() = default;

  // Calls on_event for each message until the stream ends. on_event returning false cancels.
  virtual absl::Status Generate(
      const v1::GenerateRequest& request,
      const std::function<bool(const v1::GenerateResponse&)>& on_event) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::Model> GetModel(const std::string& name) = 0;
};

}  // namespace lapidary
