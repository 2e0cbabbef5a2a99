#include "coordinator/write_scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace lapidary {

WriteScheduler::WriteScheduler() : thread_([this] { Serve(); }) {}

WriteScheduler::~WriteScheduler() {
  {
    absl::MutexLock lock(&mu_);
    closing_ = true;
    wake_.Signal();
  }
  thread_.join();
}

void WriteScheduler::Add(std::shared_ptr<WriteTarget> target) {
  absl::MutexLock lock(&mu_);
  waiting_.push_back(std::move(target));
  if (std::exchange(idle_, false)) wake_.Signal();
}

void WriteScheduler::Serve() {
  for (auto pass = Take(); !pass.empty(); pass = Take()) {
    const absl::Time began = absl::Now();
    for (const auto& target : pass) target->WriteNow();
    pass.clear();  // a target's end is not for the lock
    const absl::Duration spent = absl::Now() - began;
    if (spent >= kShortestPause) Pause(std::min(spent, kLongestPause));
  }
}

std::vector<std::shared_ptr<WriteTarget>> WriteScheduler::Take() {
  absl::MutexLock lock(&mu_);
  while (waiting_.empty() && !closing_) {
    idle_ = true;
    wake_.Wait(&mu_);
  }
  idle_ = false;
  if (closing_) return {};
  return std::exchange(waiting_, {});
}

void WriteScheduler::Pause(absl::Duration duration) {
  const absl::Time until = absl::Now() + duration;
  absl::MutexLock lock(&mu_);
  while (!closing_ && !wake_.WaitWithDeadline(&mu_, until)) {
  }
}

}  // namespace lapidary
