// Which group computes a request. A coordinator serves one group: the choice is whether it can.
#pragma once
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/admission.h"
#include "coordinator/group_client.h"

namespace lapidary {

class Router {
 public:
  explicit Router(GroupClient& group) : group_(group) {}

  // Context limit that admission checks against: the group's once it is ready, since its KV pool
  // may hold less than the model could; `model_limit` until then.
  int64_t MaxContext(int64_t model_limit) const;
  // Hands the request to a group. UNAVAILABLE with RetryInfo when none is ready.
  absl::Status Route(const AdmittedRequest& request, const std::shared_ptr<RequestSink>& sink);
  // Forgets engine requests, wherever they are.
  void Cancel(const std::vector<RequestId>& ids);
  // Pauses engine requests, or resumes them.
  void SetPaused(const std::vector<RequestId>& ids, bool paused);

 private:
  GroupClient& group_;
};

}  // namespace lapidary
