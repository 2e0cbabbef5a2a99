#include "coordinator/write_scheduler.h"

#include <atomic>
#include <functional>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

class Target final : public WriteTarget {
 public:
  explicit Target(std::function<void()> write) : write_(std::move(write)) {}
  void WriteNow() override { write_(); }

 private:
  const std::function<void()> write_;
};

TEST(WriteSchedulerTest, EveryTargetIsWrittenOncePerAdd) {
  constexpr int kTargets = 1000;
  absl::BlockingCounter left(kTargets);
  std::vector<std::atomic<int>> written(kTargets);
  WriteScheduler writes;
  for (int i = 0; i < kTargets; ++i) {
    writes.Add(std::make_shared<Target>([&, i] {
      ++written[static_cast<size_t>(i)];
      left.DecrementCount();
    }));
  }
  left.Wait();
  for (const std::atomic<int>& count : written) EXPECT_EQ(count, 1);
}

// Takes as long as a pass over many streams.
void Work(absl::Duration duration) {
  const absl::Time until = absl::Now() + duration;
  while (absl::Now() < until) {
  }
}

TEST(WriteSchedulerTest, ALongPassIsFollowedByAPauseAndWhatComesInItGoesTogether) {
  constexpr absl::Duration kPass = absl::Milliseconds(4);
  WriteScheduler writes;
  absl::Time pass_ended, next_began, last_began;
  absl::Notification first, all;
  writes.Add(std::make_shared<Target>([&] {
    Work(kPass);
    pass_ended = absl::Now();
    first.Notify();
  }));
  first.WaitForNotification();
  writes.Add(std::make_shared<Target>([&] { next_began = absl::Now(); }));
  writes.Add(std::make_shared<Target>([&] {
    last_began = absl::Now();
    all.Notify();
  }));
  all.WaitForNotification();
  EXPECT_GE(next_began - pass_ended, kPass);
  EXPECT_GE(last_began, next_began);
}

TEST(WriteSchedulerTest, TheEndWaitsForNoPauseAndLetsGoOfWhatWaits) {
  absl::Notification in_pass;
  std::weak_ptr<WriteTarget> left_over;
  {
    WriteScheduler writes;
    writes.Add(std::make_shared<Target>([&] {
      in_pass.Notify();
      Work(absl::Milliseconds(2));
    }));
    in_pass.WaitForNotification();
    auto target = std::make_shared<Target>([] {});
    left_over = target;
    writes.Add(std::move(target));
  }
  EXPECT_TRUE(left_over.expired());
}

}  // namespace
}  // namespace lapidary
