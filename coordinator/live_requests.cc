#include "coordinator/live_requests.h"

#include "absl/strings/str_format.h"

namespace lapidary {

absl::Status LiveRequests::Claim(const std::string& client_id) {
  absl::MutexLock lock(&mu_);
  if (ids_.insert(client_id).second) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrFormat("a request with the id '%s' is in progress", client_id));
}

void LiveRequests::Release(const std::string& client_id) {
  absl::MutexLock lock(&mu_);
  ids_.erase(client_id);
}

void LiveRequests::Add(const std::shared_ptr<TokenStream>& stream) {
  absl::MutexLock lock(&mu_);
  streams_.insert(stream);
}

void LiveRequests::Remove(const std::shared_ptr<TokenStream>& stream) {
  absl::MutexLock lock(&mu_);
  streams_.erase(stream);
}

int LiveRequests::open() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(streams_.size());
}

std::vector<std::shared_ptr<TokenStream>> LiveRequests::Copy() const {
  absl::MutexLock lock(&mu_);
  return {streams_.begin(), streams_.end()};
}

void LiveRequests::Tick(absl::Time now) {
  for (const auto& stream : Copy()) stream->Tick(now);
}

void LiveRequests::FailAll(const absl::Status& status, Outcome outcome, absl::Time now) {
  for (const auto& stream : Copy()) stream->Fail(status, outcome, now);
}

bool LiveRequests::AwaitNone(absl::Time deadline) const {
  absl::MutexLock lock(&mu_);
  const auto none = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return streams_.empty(); };
  return mu_.AwaitWithDeadline(absl::Condition(&none), deadline);
}

}  // namespace lapidary
