// One-shot sums of the communicator, ranks being processes, as IPC wants it.
#include <cstdio>
#include <cstring>

#include "absl/synchronization/notification.h"
#include "common/base/half.h"
#include "common/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda/self_spawn.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_stream.h"
#include "worker/cuda/nccl_communicator.h"

namespace lapidary {
namespace {

enum Exit { kAsItShould = 0, kWrong = 1, kFellBack = 2, kLost = 3 };

template <class T>
absl::StatusOr<bool> SumsRight(NcclCommunicator& comm, CudaStream& stream, int64_t count,
                               T (*number)(float)) {
  std::vector<T> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[i] = number(static_cast<float>(comm.rank().value + 1) * static_cast<float>(i % 5));
  }
  const size_t bytes = values.size() * sizeof(T);
  ASSIGN_OR_RETURN(const DeviceBuffer data,
                   DeviceBuffer::Allocate(static_cast<int64_t>(bytes), "test"));
  if (cudaMemcpyAsync(data.data(), values.data(), bytes, cudaMemcpyHostToDevice, stream.raw()) !=
      cudaSuccess) {
    return absl::InternalError("copy");
  }
  if (sizeof(T) == 4) {
    comm.AllReduceSum(data.data<float>(), count, stream);
  } else {
    comm.AllReduceSumBf16(data.data(), count, stream);
  }
  RETURN_IF_ERROR(stream.Synchronize());
  if (cudaMemcpy(values.data(), data.data(), bytes, cudaMemcpyDeviceToHost) != cudaSuccess) {
    return absl::InternalError("copy");
  }
  const auto factor = 0.5f * static_cast<float>(comm.size() * (comm.size() + 1));
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] != number(factor * static_cast<float>(i % 5))) return false;
  }
  return true;
}

absl::StatusOr<Exit> RankMain(const std::string& role, int rank, int size, const std::string& id) {
  (void)cudaSetDevice(rank);
  ASSIGN_OR_RETURN(const auto stream, CudaStream::Create());
  std::string warning;
  absl::Notification other_is_lost;
  NcclOptions options{.id = id, .rank = RankId{rank}, .size = size, .ended = {}, .on_lost = {}};
  options.on_lost = [&other_is_lost](const absl::Status&) { other_is_lost.Notify(); };
  options.one_shot = true;
  if (role == "stays_away") options.one_shot_patience = absl::Milliseconds(200);
  options.warn = [&warning](const std::string& what) { warning = what; };
  ASSIGN_OR_RETURN(const auto comm, NcclCommunicator::Create(options));
  stream->set_guard([&comm = *comm] { return comm.Ended(); });
  // The last ones are NCCL's: too large, and not of whole 16 bytes.
  const std::vector<int64_t> counts = {8, 5376, 64, kOneShotMaxBytes / 2, kOneShotMaxBytes, 5};
  for (const int64_t count : counts) {
    ASSIGN_OR_RETURN(const bool right,
                     SumsRight<float>(*comm, *stream, count, [](float v) { return v; }));
    ASSIGN_OR_RETURN(const bool right16,
                     SumsRight<uint16_t>(*comm, *stream, count, [](float v) { return ToBf16(v); }));
    if (!right || !right16) return kWrong;
  }
  if (role == "stays_away") {
    if (rank == 1) {
      return other_is_lost.WaitForNotificationWithTimeout(absl::Seconds(30)) ? kAsItShould : kWrong;
    }
    const absl::Status status =
        SumsRight<float>(*comm, *stream, 64, [](float v) { return v; }).status();
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    comm->Abort("a sum has failed");
    return status.code() == absl::StatusCode::kUnavailable &&
                   status.message() == "one-shot all-reduce: rank 1 has not answered for 200ms"
               ? kLost
               : kWrong;
  }
  std::fprintf(stderr, "%s\n", warning.c_str());
  return warning.find("unproven") != std::string::npos ? kAsItShould : kFellBack;
}

std::vector<int> ExitCodes(const char* role, int size) {
  const auto id = NewNcclId();
  EXPECT_TRUE(id.ok()) << id.status();
  std::vector<pid_t> pids;
  for (int r = 0; r < size; ++r) {
    pids.push_back(SpawnSelf({{"LAPIDARY_ROLE", role},
                              {"LAPIDARY_ID", ToHex(*id)},
                              {"LAPIDARY_SIZE", std::to_string(size)},
                              {"LAPIDARY_RANK", std::to_string(r)}}));
  }
  std::vector<int> codes;
  for (const pid_t pid : pids) codes.push_back(ExitCode(pid));
  return codes;
}

using testing::Each;
using testing::ElementsAre;

TEST(OneShotProcess, Sums) {
  for (const int size : {2, 4}) EXPECT_THAT(ExitCodes("sums", size), Each(kAsItShould));
}
TEST(OneShotProcess, ARankThatStaysAwayIsNamed) {
  EXPECT_THAT(ExitCodes("stays_away", 2), ElementsAre(kLost, kAsItShould));
}
TEST(OneShotProcess, WithoutPeerAccessAllFallBackToNccl) {
  setenv("SIMT_NO_PEERS", "1", 1);
  EXPECT_THAT(ExitCodes("sums", 3), Each(kFellBack));
  unsetenv("SIMT_NO_PEERS");
}
TEST(OneShotProcess, TooManyRanksFallBackToNccl) {
  EXPECT_THAT(ExitCodes("sums", kOneShotRanks + 1), Each(kFellBack));
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (const std::string role = lapidary::Environment("LAPIDARY_ROLE"); !role.empty()) {
    const auto done =
        lapidary::RankMain(role, std::atoi(lapidary::Environment("LAPIDARY_RANK").c_str()),
                           std::atoi(lapidary::Environment("LAPIDARY_SIZE").c_str()),
                           lapidary::FromHex(lapidary::Environment("LAPIDARY_ID")));
    if (!done.ok()) std::fprintf(stderr, "%s\n", done.status().ToString().c_str());
    return done.ok() ? *done : 99;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
