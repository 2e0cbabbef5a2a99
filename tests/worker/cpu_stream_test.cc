#include <atomic>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "worker/stream.h"

namespace lapidary {
namespace {

TEST(CpuStreamTest, RunsInOrderOnOneThread) {
  auto stream = CreateCpuStream();
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  for (int i = 0; i < 100; ++i) {
    stream->Enqueue([&, i] {
      order.push_back(i);
      threads.push_back(std::this_thread::get_id());
      return absl::OkStatus();
    });
  }
  ASSERT_TRUE(stream->Synchronize().ok());
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
  EXPECT_NE(threads[0], std::this_thread::get_id());
  for (const std::thread::id id : threads) EXPECT_EQ(id, threads[0]);
}

TEST(CpuStreamTest, AnErrorSkipsWhatFollowsUntilItIsRead) {
  auto stream = CreateCpuStream();
  bool ran = false;
  stream->Enqueue([] { return absl::InternalError("first"); });
  stream->Enqueue([&] {
    ran = true;
    return absl::InternalError("second");
  });
  const absl::Status status = stream->Synchronize();
  EXPECT_EQ(status.message(), "first");
  EXPECT_FALSE(ran);
  stream->Enqueue([&] {
    ran = true;
    return absl::OkStatus();
  });
  EXPECT_TRUE(stream->Synchronize().ok());
  EXPECT_TRUE(ran);
}

// A mark is passed while what stands behind it has not even begun.
TEST(CpuStreamTest, AMarkIsPassedBeforeWhatFollows) {
  auto stream = CreateCpuStream();
  absl::Notification go;
  bool first = false;
  stream->Enqueue([&] {
    first = true;
    return absl::OkStatus();
  });
  const uint64_t mark = stream->Record();
  stream->Enqueue([&] {
    go.WaitForNotification();
    return absl::OkStatus();
  });
  EXPECT_TRUE(stream->Wait(mark).ok());
  EXPECT_TRUE(first);
  go.Notify();
  EXPECT_TRUE(stream->Synchronize().ok());
}

TEST(CpuStreamTest, AnErrorBelongsToTheMarksBehindIt) {
  auto stream = CreateCpuStream();
  const uint64_t before = stream->Record();
  stream->Enqueue([] { return absl::InternalError("failed"); });
  const uint64_t after = stream->Record();
  bool ran = false;
  stream->Enqueue([&] {
    ran = true;
    return absl::OkStatus();
  });
  const uint64_t last = stream->Record();
  EXPECT_EQ(stream->Wait(last).message(), "failed");
  EXPECT_EQ(stream->Wait(after).message(), "failed");
  EXPECT_TRUE(stream->Wait(before).ok());
  EXPECT_EQ(stream->Synchronize().message(), "failed") << "waiting does not take the error";
  EXPECT_FALSE(ran);
  EXPECT_TRUE(stream->Wait(last).ok());
}

TEST(CpuStreamTest, TheDestructorFinishesTheQueue) {
  std::atomic<int> count{0};
  {
    auto stream = CreateCpuStream();
    for (int i = 0; i < 50; ++i) {
      stream->Enqueue([&] {
        ++count;
        return absl::OkStatus();
      });
    }
  }
  EXPECT_EQ(count, 50);
}

}  // namespace
}  // namespace lapidary
