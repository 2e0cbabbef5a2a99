#include "coordinator/router.h"

namespace lapidary {

int64_t Router::MaxContext(int64_t model_limit) const {
  const GroupState state = group_.state();
  return state.ready() && state.max_context > 0 ? state.max_context : model_limit;
}

absl::Status Router::Route(const AdmittedRequest& request,
                           const std::shared_ptr<RequestSink>& sink) {
  return group_.Submit(request.choices, sink);
}

void Router::Cancel(const std::vector<RequestId>& ids) { group_.Cancel(ids); }

void Router::SetPaused(const std::vector<RequestId>& ids, bool paused) {
  group_.SetPaused(ids, paused);
}

}  // namespace lapidary
