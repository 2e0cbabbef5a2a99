#include <thread>

#include "gtest/gtest.h"
#include "tests/worker/comm/communicator_cases.h"

namespace lapidary {
namespace {

class InprocCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(InprocCommunicatorTest, CollectivesGiveTheSameBytesOnEveryRank) {
  const int size = GetParam();
  const auto comms = CreateInprocCommunicators(size);
  std::vector<absl::Status> results(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] { results[r] = CheckCollectives(*comms[r], SumSizes()); });
  }
  for (std::thread& t : threads) t.join();
  for (int r = 0; r < size; ++r) EXPECT_TRUE(results[r].ok()) << "rank " << r << results[r];
}

INSTANTIATE_TEST_SUITE_P(Sizes, InprocCommunicatorTest, testing::Values(1, 2, 3, 4, 5, 8));

// 64 MiB through a window of 4 MiB.
TEST(InprocCommunicator, LargeSumGoesThroughTheWindow) {
  const auto comms = CreateInprocCommunicators(2);
  absl::Status other;
  std::thread thread([&] { other = CheckCollectives(*comms[1], {int64_t{16} << 20}); });
  EXPECT_TRUE(CheckCollectives(*comms[0], {int64_t{16} << 20}).ok());
  thread.join();
  EXPECT_TRUE(other.ok()) << other;
}

// Many small operations back to back: the halves of the slots must not be overtaken.
TEST(InprocCommunicator, ManySmallSumsStayInStep) {
  constexpr int kSize = 3;
  const auto comms = CreateInprocCommunicators(kSize);
  std::vector<int> wrong(kSize, 0);
  std::vector<std::thread> threads;
  for (int r = 0; r < kSize; ++r) {
    threads.emplace_back([&, r] {
      InlineStream stream;
      for (int round = 0; round < 2000; ++round) {
        float v[2] = {static_cast<float>(round * (r + 1)), 1.0f};
        comms[r]->AllReduceSum(v, 2, stream);
        if (v[0] != static_cast<float>(round * 6) || v[1] != kSize) ++wrong[r];
      }
      if (!stream.Synchronize().ok()) ++wrong[r];
    });
  }
  for (std::thread& t : threads) t.join();
  for (int r = 0; r < kSize; ++r) EXPECT_EQ(wrong[r], 0) << "rank " << r;
}

TEST(InprocCommunicator, AbortWakesEveryoneAndStays) {
  const auto comms = CreateInprocCommunicators(3);
  std::vector<absl::Status> results(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      InlineStream stream;
      comms[r]->Barrier(stream);
      results[r] = stream.Synchronize();
    });
  }
  comms[2]->Abort("rank 2 lost its weights");
  comms[2]->Abort("a later reason");
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : results) {
    EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(s.message(), "rank 2 lost its weights");
  }
  InlineStream stream;
  float v = 1;
  comms[2]->AllReduceSum(&v, 1, stream);
  EXPECT_EQ(stream.Synchronize().message(), "rank 2 lost its weights");
}

TEST(InprocCommunicator, SilentRankIsNamed) {
  const auto comms = CreateInprocCommunicators(2);
  comms[0]->set_operation_timeout(absl::Milliseconds(50));
  InlineStream stream;
  comms[0]->Barrier(stream);
  const absl::Status status = stream.Synchronize();
  EXPECT_EQ(status.message(), "rank 0 waited 50ms for rank 1 in a collective");
  comms[1]->Barrier(stream);
  EXPECT_TRUE(stream.Synchronize().ok());  // everyone had come; the next one fails
  comms[1]->Barrier(stream);
  EXPECT_EQ(stream.Synchronize().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace lapidary
