// Ranks as threads, each with a GPU of its own.
#include "worker/cuda/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <functional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "common/base/half.h"
#include "common/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/test_devices.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_status.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {
namespace {

using testing::HasSubstr;

// fn(rank, communicator, stream) on a thread per rank; their results.
std::vector<absl::Status> RunRanks(
    int ranks, const std::function<absl::Status(int, NcclCommunicator&, CudaStream&)>& fn) {
  const auto id = NewNcclId();
  EXPECT_TRUE(id.ok()) << id.status();
  std::vector<absl::Status> results(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      results[rank] = [&]() -> absl::Status {
        (void)cudaSetDevice(rank);
        ASSIGN_OR_RETURN(const auto stream, CudaStream::Create());
        ASSIGN_OR_RETURN(
            const auto comm,
            NcclCommunicator::Create(
                {.id = *id, .rank = RankId{rank}, .size = ranks, .ended = {}, .on_lost = {}}));
        stream->set_guard([&comm = *comm] { return comm.Ended(); });
        return fn(rank, *comm, *stream);
      }();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

template <class T>
absl::StatusOr<DeviceBuffer> ToDevice(const std::vector<T>& values) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer,
                   DeviceBuffer::Allocate(std::ssize(values) * int64_t{sizeof(T)}, "test"));
  if (cudaMemcpy(buffer.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice) !=
      cudaSuccess) {
    return absl::InternalError("copy");
  }
  RETURN_IF_CUDA_ERROR("copy", cudaDeviceSynchronize());  // it may still be on its way
  return buffer;
}
template <class T>
std::vector<T> ToHost(const DeviceBuffer& buffer) {
  std::vector<T> values(buffer.bytes() / sizeof(T));
  EXPECT_EQ(
      cudaMemcpy(values.data(), buffer.data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
      cudaSuccess);
  return values;
}

class NcclCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(NcclCommunicatorTest, SumsAndGathers) {
  const int ranks = GetParam();
  LAPIDARY_NEEDS_DEVICES(ranks);
  const auto check = [ranks](int rank, NcclCommunicator& comm, CudaStream& stream) -> absl::Status {
    for (const int64_t count : {1, 7, 5000}) {
      std::vector<float> floats(count);
      std::vector<uint16_t> halves(count);
      std::vector<uint8_t> own(count);
      for (int64_t i = 0; i < count; ++i) {
        floats[i] = static_cast<float>(rank + 1) * static_cast<float>(i % 97);
        halves[i] = ToBf16(static_cast<float>(rank + i % 13));
        own[i] = static_cast<uint8_t>(rank * 50 + i);
      }
      ASSIGN_OR_RETURN(const DeviceBuffer sum, ToDevice(floats));
      ASSIGN_OR_RETURN(const DeviceBuffer sum16, ToDevice(halves));
      ASSIGN_OR_RETURN(const DeviceBuffer send, ToDevice(own));
      ASSIGN_OR_RETURN(const DeviceBuffer all, DeviceBuffer::Allocate(count * ranks, "test"));
      comm.AllReduceSum(sum.data<float>(), count, stream);
      comm.AllReduceSumBf16(sum16.data(), count, stream);
      comm.AllGather(send.data(), count, all.data(), stream);
      comm.Barrier(stream);
      RETURN_IF_ERROR(stream.Synchronize());
      const auto factor = 0.5f * static_cast<float>(ranks * (ranks + 1));
      const auto offset = 0.5f * static_cast<float>(ranks * (ranks - 1));
      const auto summed = ToHost<float>(sum);
      const auto summed16 = ToHost<uint16_t>(sum16);
      const auto gathered = ToHost<uint8_t>(all);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(summed[i], factor * static_cast<float>(i % 97));
        EXPECT_EQ(FromBf16(summed16[i]), offset + static_cast<float>(ranks * (i % 13)));
        for (int r = 0; r < ranks; ++r) {
          EXPECT_EQ(gathered[r * count + i], static_cast<uint8_t>(r * 50 + i));
        }
      }
    }
    return absl::OkStatus();
  };
  for (const absl::Status& s : RunRanks(ranks, check)) EXPECT_TRUE(s.ok()) << s;
}

// Rank s sends 3 s + 5 r + 1 bytes to rank r, and nothing to itself when s is odd.
TEST_P(NcclCommunicatorTest, AllToAllWithUnevenParts) {
  const int ranks = GetParam();
  LAPIDARY_NEEDS_DEVICES(ranks);
  const auto bytes = [](int from, int to) {
    return from == to && from % 2 == 1 ? int64_t{0} : int64_t{3} * from + 5 * to + 1;
  };
  const auto value = [](int from, int to, int64_t i) {
    return static_cast<uint8_t>(100 * from + 10 * to + i);
  };
  const auto check = [&](int rank, NcclCommunicator& comm, CudaStream& stream) -> absl::Status {
    std::vector<int64_t> send_bytes, recv_bytes;
    std::vector<uint8_t> send;
    int64_t total = 0;
    for (int r = 0; r < ranks; ++r) {
      send_bytes.push_back(bytes(rank, r));
      recv_bytes.push_back(bytes(r, rank));
      total += recv_bytes.back();
      for (int64_t i = 0; i < send_bytes.back(); ++i) send.push_back(value(rank, r, i));
    }
    ASSIGN_OR_RETURN(const DeviceBuffer from, ToDevice(send));
    ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::Allocate(total, "test"));
    comm.AllToAll(from.data(), send_bytes, to.data(), recv_bytes, stream);
    RETURN_IF_ERROR(stream.Synchronize());
    const auto got = ToHost<uint8_t>(to);
    int64_t at = 0;
    for (int r = 0; r < ranks; ++r) {
      for (int64_t i = 0; i < recv_bytes[r]; ++i) EXPECT_EQ(got[at++], value(r, rank, i));
    }
    return absl::OkStatus();
  };
  for (const absl::Status& s : RunRanks(ranks, check)) EXPECT_TRUE(s.ok()) << s;
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclCommunicatorTest, testing::Values(1, 2, 3, 4));

TEST(NcclCommunicator, AnAbortFreesWhoWaits) {
  LAPIDARY_NEEDS_DEVICES(2);
  // Rank 1 never sums; rank 0 waits for it until it is told.
  absl::Notification summed;
  const auto results =
      RunRanks(2, [&](int rank, NcclCommunicator& comm, CudaStream& stream) -> absl::Status {
        if (rank == 1) {
          summed.WaitForNotification();
          comm.Abort("rank 1 goes");
          return absl::OkStatus();
        }
        ASSIGN_OR_RETURN(const DeviceBuffer data, ToDevice(std::vector<float>(4, 1.0f)));
        comm.AllReduceSum(data.data<float>(), 4, stream);
        std::thread aborter([&] {
          summed.Notify();
          comm.Abort("rank 1 goes");
        });
        const absl::Status waited = stream.Synchronize();
        aborter.join();
        EXPECT_FALSE(waited.ok());
        comm.AllReduceSum(data.data<float>(), 4, stream);  // and for good
        return stream.Synchronize();
      });
  EXPECT_EQ(results[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(results[0].message(), HasSubstr("rank 1 goes"));
}

TEST(NcclCommunicator, ARankThatNeverComesIsNoticed) {
  const auto id = NewNcclId();
  ASSERT_TRUE(id.ok());
  const auto comm = NcclCommunicator::Create({.id = *id,
                                              .rank = RankId{0},
                                              .size = 2,
                                              .connect_timeout = absl::Milliseconds(100),
                                              .ended = {},
                                              .on_lost = {}});
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(comm.status().message(), HasSubstr("not all of 2 ranks"));
}

TEST(NcclCommunicator, AGroupThatEndedIsNotWaitedFor) {
  const auto id = NewNcclId();
  ASSERT_TRUE(id.ok());
  const auto comm =
      NcclCommunicator::Create({.id = *id,
                                .rank = RankId{1},
                                .size = 2,
                                .ended = [] { return absl::AbortedError("rank 0 has no weights"); },
                                .on_lost = {}});
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(comm.status().message(), "rank 0 has no weights");
}

// Whoever ends the group may hold a lock of `ended`'s.
TEST(NcclCommunicator, AnAbortDoesNotWaitForWhoAsksWhetherTheGroupEnded) {
  const auto id = NewNcclId();
  ASSERT_TRUE(id.ok());
  absl::Notification created, asked, aborted;
  const auto ended = [&] {
    if (!created.HasBeenNotified()) return absl::OkStatus();
    asked.Notify();
    EXPECT_TRUE(aborted.WaitForNotificationWithTimeout(absl::Seconds(60)));
    return absl::OkStatus();
  };
  const auto stream = CudaStream::Create();
  ASSERT_TRUE(stream.ok());
  const auto comm = NcclCommunicator::Create(
      {.id = *id, .rank = RankId{0}, .size = 1, .ended = ended, .on_lost = {}});
  ASSERT_TRUE(comm.ok()) << comm.status();
  const auto data = ToDevice(std::vector<float>(4, 1.0f));
  ASSERT_TRUE(data.ok());
  created.Notify();
  std::thread aborter([&] {
    asked.WaitForNotification();
    (*comm)->Abort("the group ends");
    aborted.Notify();
  });
  (*comm)->AllGather(data->data(), 16, data->data(), **stream);  // is in progress at first
  const bool in_progress = asked.HasBeenNotified();
  if (!in_progress) asked.Notify();
  aborter.join();
  if (!in_progress) GTEST_SKIP() << "NCCL was done at once";
  EXPECT_EQ((*comm)->Ended().message(), "the group ends");
}

TEST(NcclCommunicator, ARendezvousOfAnotherSizeIsRefused) {
  const auto comm = NcclCommunicator::Create(
      {.id = "short", .rank = RankId{0}, .size = 2, .ended = {}, .on_lost = {}});
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(comm.status().message(), HasSubstr("5 bytes"));
}

}  // namespace
}  // namespace lapidary
