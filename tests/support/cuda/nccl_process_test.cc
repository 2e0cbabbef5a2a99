// The NCCL stand-in with ranks as processes, some of which die.
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/cuda/self_spawn.h"

namespace lapidary {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

#define OR_EXIT(condition, code) \
  if (!(condition)) _exit(code)

ncclUniqueId IdOf(const std::string& bytes) {
  ncclUniqueId id;
  OR_EXIT(bytes.size() == sizeof id.internal, 90);
  memcpy(id.internal, bytes.data(), bytes.size());
  return id;
}

// What one rank does: the exit code tells how it went, 0 being as it should.
int RankMain(const char* role, int rank, int ranks, const ncclUniqueId& id) {
  if (!strcmp(role, "dies_before") && rank == 1) _exit(7);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ncclResult_t state = ncclCommInitRankConfig(&comm, ranks, id, rank, &config);
  while (state == ncclInProgress) {
    OR_EXIT(ncclCommGetAsyncError(comm, &state) == ncclSuccess, 10);
    std::this_thread::yield();
  }
  OR_EXIT(state == ncclSuccess, 12);
  cudaStream_t stream = nullptr;
  OR_EXIT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, 13);
  void* p = nullptr;
  constexpr size_t kCount = 100000;
  OR_EXIT(cudaMalloc(&p, kCount * 4) == cudaSuccess, 14);
  std::vector<int> values(kCount, rank + 1);
  OR_EXIT(cudaMemcpy(p, values.data(), kCount * 4, cudaMemcpyHostToDevice) == cudaSuccess, 15);
  OR_EXIT(cudaDeviceSynchronize() == cudaSuccess, 15);  // it may still be on its way
  for (int turn = 0; turn < 20; ++turn) {
    if (!strcmp(role, "dies") && rank == ranks - 1 && turn == 10) raise(SIGKILL);
    const ncclResult_t r = ncclAllReduce(p, p, kCount, ncclInt32, ncclMax, comm, stream);
    OR_EXIT(r == ncclSuccess || r == ncclInProgress || r == ncclRemoteError, 16);
    ncclResult_t error = ncclSuccess;
    while (cudaStreamQuery(stream) == cudaErrorNotReady && error != ncclRemoteError) {
      OR_EXIT(ncclCommGetAsyncError(comm, &error) == ncclSuccess, 17);
      std::this_thread::yield();
    }
    if (error == ncclRemoteError || r == ncclRemoteError) {
      // The operation hangs on the device until the communicator is aborted.
      OR_EXIT(ncclCommAbort(comm) == ncclSuccess, 18);
      OR_EXIT(cudaStreamSynchronize(stream) == cudaSuccess, 19);
      return !strcmp(role, "dies") ? 0 : 20;
    }
  }
  OR_EXIT(cudaMemcpy(values.data(), p, kCount * 4, cudaMemcpyDeviceToHost) == cudaSuccess, 21);
  for (int v : values) OR_EXIT(v == ranks, 22);
  OR_EXIT(ncclCommDestroy(comm) == ncclSuccess, 23);
  return !strcmp(role, "dies") ? 24 : 0;
}

class NcclProcessTest : public testing::Test {
 protected:
  void Start(const char* role, int ranks) {
    ncclUniqueId id;
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    name_ = id.internal + 1;
    for (int r = 0; r < ranks; ++r) {
      pids_.push_back(SpawnSelf({{"LAPIDARY_ROLE", role},
                                 {"LAPIDARY_ID", ToHex({id.internal, sizeof id.internal})},
                                 {"LAPIDARY_RANKS", std::to_string(ranks)},
                                 {"LAPIDARY_RANK", std::to_string(r)}}));
    }
  }
  int ExitCode(size_t rank) { return lapidary::ExitCode(pids_[rank]); }
  bool NameIsLeft() const { return access(("/dev/shm/" + name_).c_str(), F_OK) == 0; }

  std::vector<pid_t> pids_;
  std::string name_;
};

TEST_F(NcclProcessTest, RanksReduceTogether) {
  for (const int ranks : {2, 4}) {
    pids_.clear();
    Start("works", ranks);
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(ExitCode(r), 0) << "rank " << r;
    EXPECT_FALSE(NameIsLeft());
  }
}
TEST_F(NcclProcessTest, ARankIsKilledAndTheOthersNotice) {
  Start("dies", 3);
  const auto begin = steady_clock::now();
  // The dead one stays a zombie until then.
  EXPECT_EQ(ExitCode(0), 0);
  EXPECT_EQ(ExitCode(1), 0);
  EXPECT_LT(steady_clock::now() - begin, seconds(20));
  EXPECT_EQ(ExitCode(2), -SIGKILL);
}
TEST_F(NcclProcessTest, ARankThatNeverJoinsIsWaitedFor) {
  setenv("SIMT_NCCL_TIMEOUT_S", "0.5", 1);
  Start("dies_before", 2);
  unsetenv("SIMT_NCCL_TIMEOUT_S");
  EXPECT_EQ(ExitCode(1), 7);
  EXPECT_EQ(ExitCode(0), 12);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (const std::string role = lapidary::Environment("LAPIDARY_ROLE"); !role.empty()) {
    return lapidary::RankMain(
        role.c_str(), atoi(lapidary::Environment("LAPIDARY_RANK").c_str()),
        atoi(lapidary::Environment("LAPIDARY_RANKS").c_str()),
        lapidary::IdOf(lapidary::FromHex(lapidary::Environment("LAPIDARY_ID"))));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
