#include "worker/engine_inbox.h"

#include <utility>

namespace lapidary {

bool EngineInbox::Submit(EngineRequest request) {
  absl::MutexLock lock(&mu_);
  batch_.submits.push_back(std::move(request));
  return NoteArrival();
}

bool EngineInbox::Refuse(EngineEvent event) {
  absl::MutexLock lock(&mu_);
  batch_.refused.push_back(std::move(event));
  return NoteArrival();
}

bool EngineInbox::NoteArrival() {
  news_ = true;
  if (batch_.submits.size() + batch_.refused.size() < capacity_) return true;
  was_full_ = true;
  return false;
}

void EngineInbox::Cancel(RequestId id) {
  absl::MutexLock lock(&mu_);
  batch_.cancels.push_back(id);
  news_ = true;
}

void EngineInbox::SetPaused(RequestId id, bool pause) {
  absl::MutexLock lock(&mu_);
  batch_.pauses.push_back(PauseChange{id, pause});
  news_ = true;
}

void EngineInbox::Drain() {
  absl::MutexLock lock(&mu_);
  news_ |= !batch_.drain;
  batch_.drain = true;
}

void EngineInbox::End(absl::Status why) {
  absl::MutexLock lock(&mu_);
  if (!batch_.end.ok()) return;
  batch_.end = std::move(why);
  news_ = true;
}

void EngineInbox::set_on_space(std::function<void()> on_space) {
  absl::MutexLock lock(&mu_);
  on_space_ = std::move(on_space);
}

EngineInbox::Batch EngineInbox::Take(bool wait, absl::Time deadline) {
  Batch taken;
  std::function<void()> on_space;
  {
    absl::MutexLock lock(&mu_);
    if (wait) mu_.AwaitWithDeadline(absl::Condition(&news_), deadline);
    news_ = false;
    taken.submits = std::exchange(batch_.submits, {});
    taken.refused = std::exchange(batch_.refused, {});
    taken.pauses = std::exchange(batch_.pauses, {});
    taken.cancels = std::exchange(batch_.cancels, {});
    taken.drain = batch_.drain;
    taken.end = batch_.end;
    if (std::exchange(was_full_, false)) on_space = on_space_;
  }
  if (on_space) on_space();
  return taken;
}

}  // namespace lapidary
