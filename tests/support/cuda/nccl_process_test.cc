// The NCCL stand-in with ranks as processes, some of which die.
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/environment.h"

extern char** environ;

namespace lapidary {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

#define OR_EXIT(condition, code) \
  if (!(condition)) _exit(code)

std::string ToHex(const ncclUniqueId& id) {
  std::string hex;
  char two[3];
  for (char c : id.internal) {
    snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(c));
    hex += two;
  }
  return hex;
}
ncclUniqueId FromHex(const char* hex) {
  ncclUniqueId id;
  for (size_t i = 0; i < sizeof id.internal; ++i) {
    unsigned byte = 0;
    OR_EXIT(sscanf(hex + 2 * i, "%2x", &byte) == 1, 90);
    id.internal[i] = static_cast<char>(byte);
  }
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
    setenv("LAPIDARY_ROLE", role, 1);
    setenv("LAPIDARY_ID", ToHex(id).c_str(), 1);
    setenv("LAPIDARY_RANKS", std::to_string(ranks).c_str(), 1);
    for (int r = 0; r < ranks; ++r) {
      setenv("LAPIDARY_RANK", std::to_string(r).c_str(), 1);
      char self[] = "/proc/self/exe";
      char* arguments[] = {self, nullptr};
      pid_t pid = 0;
      ASSERT_EQ(posix_spawn(&pid, self, nullptr, nullptr, arguments, environ), 0);
      pids_.push_back(pid);
    }
    unsetenv("LAPIDARY_ROLE");
  }
  int ExitCode(size_t rank) {
    int status = 0;
    EXPECT_EQ(waitpid(pids_[rank], &status, 0), pids_[rank]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
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
    return lapidary::RankMain(role.c_str(), atoi(lapidary::Environment("LAPIDARY_RANK").c_str()),
                              atoi(lapidary::Environment("LAPIDARY_RANKS").c_str()),
                              lapidary::FromHex(lapidary::Environment("LAPIDARY_ID").c_str()));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
