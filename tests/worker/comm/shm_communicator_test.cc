// Ranks as forked processes, as the launcher starts them: they meet by name alone.
// ThreadSanitizer does not see across processes; the same algorithm runs under it in-process.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/comm/communicator_cases.h"

namespace lapidary {
namespace {

using testing::HasSubstr;

std::string UniqueName(const char* test) { return absl::StrFormat("test-%s-%d", test, getpid()); }

ShmCommOptions Options(const std::string& name, int rank, int size) {
  ShmCommOptions options;
  options.name = name;
  options.rank = RankId{rank};
  options.size = size;
  options.connect_timeout = absl::Seconds(20);
  options.operation_timeout = absl::Seconds(20);
  return options;
}

// Runs `body` in a child; its return value is the exit code.
pid_t Fork(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  _exit(body());
}

int ExitCode(pid_t pid) {
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool NameExists(const std::string& name) {
  const int fd = shm_open(("/lapidary-" + name).c_str(), O_RDONLY, 0);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

class ShmCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(ShmCommunicatorTest, ProcessesMeetAndAgree) {
  const int size = GetParam();
  const std::string name = UniqueName("agree");
  std::vector<pid_t> children;
  for (int r = 0; r < size; ++r) {
    children.push_back(Fork([&] {
      auto comm = CreateShmCommunicator(Options(name, r, size));
      if (!comm.ok()) return 2;
      return CheckCollectives(**comm, SumSizes()).ok() ? 0 : 3;
    }));
  }
  for (int r = 0; r < size; ++r) EXPECT_EQ(ExitCode(children[r]), 0) << "rank " << r;
  EXPECT_FALSE(NameExists(name)) << "a name was left in /dev/shm";
}

INSTANTIATE_TEST_SUITE_P(Sizes, ShmCommunicatorTest, testing::Values(1, 2, 4));

TEST(ShmCommunicator, KilledRankEndsTheOthersOperation) {
  const std::string name = UniqueName("kill");
  const pid_t victim = Fork([&] {
    auto comm = CreateShmCommunicator(Options(name, 1, 2));
    if (!comm.ok()) return 2;
    while (true) pause();  // attached, and never comes to the barrier
  });
  auto comm = CreateShmCommunicator(Options(name, 0, 2));
  ASSERT_TRUE(comm.ok()) << comm.status();
  std::thread killer([&] {
    kill(victim, SIGKILL);  // not yet waited for: a zombie, which kill(pid, 0) calls alive
  });
  const absl::Time start = absl::Now();
  InlineStream stream;
  std::vector<float> data(1 << 20, 1.0f);
  (*comm)->AllReduceSum(data.data(), 1 << 20, stream);
  const absl::Status status = stream.Synchronize();
  killer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), absl::StrFormat("rank 1 (process %d) died", victim));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));  // far below the operation timeout
  EXPECT_EQ(ExitCode(victim), -SIGKILL);
}

TEST(ShmCommunicator, RankThatNeverAppearsIsNamed) {
  const std::string name = UniqueName("absent");
  const pid_t one = Fork([&] {
    const auto comm = CreateShmCommunicator(Options(name, 1, 3));
    return comm.status().message() ==
                   absl::StrFormat("rank 2 of 3 of group '%s' did not appear within 300ms", name)
               ? 0
               : 4;
  });
  ShmCommOptions options = Options(name, 0, 3);
  options.connect_timeout = absl::Milliseconds(300);
  const auto comm = CreateShmCommunicator(options);
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(comm.status().message(), HasSubstr("rank 2 of 3"));
  EXPECT_EQ(ExitCode(one), 0);
  EXPECT_FALSE(NameExists(name));
}

TEST(ShmCommunicator, LeaderThatNeverAppearsIsNamed) {
  ShmCommOptions options = Options(UniqueName("leaderless"), 1, 2);
  options.connect_timeout = absl::Milliseconds(50);
  const auto comm = CreateShmCommunicator(options);
  EXPECT_EQ(comm.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(comm.status().message(), HasSubstr("rank 0 of group"));
}

// Rank 0 dies while it waits for the others; its name must not block or mislead the next group.
TEST(ShmCommunicator, SegmentOfADeadLeaderIsReplaced) {
  const std::string name = UniqueName("stale");
  const pid_t dead = Fork([&] {
    (void)CreateShmCommunicator(Options(name, 0, 2));
    return 0;
  });
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (!NameExists(name) && absl::Now() < deadline) std::this_thread::yield();
  kill(dead, SIGKILL);
  ASSERT_EQ(ExitCode(dead), -SIGKILL);
  ASSERT_TRUE(NameExists(name));

  const pid_t one = Fork([&] {
    auto comm = CreateShmCommunicator(Options(name, 1, 2));
    return comm.ok() && CheckCollectives(**comm, {5}).ok() ? 0 : 2;
  });
  auto comm = CreateShmCommunicator(Options(name, 0, 2));
  ASSERT_TRUE(comm.ok()) << comm.status();
  EXPECT_TRUE(CheckCollectives(**comm, {5}).ok());
  EXPECT_EQ(ExitCode(one), 0);
  EXPECT_FALSE(NameExists(name));
}

TEST(ShmCommunicator, BadOptionsAreRefused) {
  EXPECT_EQ(CreateShmCommunicator(Options("a/b", 0, 2)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateShmCommunicator(Options("ok", 2, 2)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateShmCommunicator(Options("ok", 0, 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lapidary
