#include <atomic>
#include <thread>
#include <vector>

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
