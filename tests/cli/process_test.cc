// The test binary starts itself: with these arguments it is the child.
#include "cli/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace lapidary {
namespace {

absl::StatusOr<ChildProcess> StartMode(const std::string& mode, int announce_fd = -1) {
  return ChildProcess::Start(mode, {"--child-mode", mode}, announce_fd);
}

TEST(ChildProcess, ReportsTheExitCode) {
  absl::StatusOr<ChildProcess> child = StartMode("exit7");
  ASSERT_TRUE(child.ok()) << child.status();
  const std::optional<int> status = child->Wait(absl::Seconds(20));
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(DescribeWaitStatus(*status), "exited with code 7");
}

TEST(ChildProcess, ReportsTheSignal) {
  absl::StatusOr<ChildProcess> child = StartMode("pause");
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_FALSE(child->TryWait().has_value());
  child->Signal(SIGKILL);
  const std::optional<int> status = child->Wait(absl::Seconds(20));
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(DescribeWaitStatus(*status), "was killed by signal 9 (Killed)");
}

TEST(ChildProcess, PassesTheAnnounceDescriptor) {
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  absl::StatusOr<ChildProcess> child = StartMode("announce", pipe_fds[1]);
  close(pipe_fds[1]);
  ASSERT_TRUE(child.ok()) << child.status();
  char buffer[16] = {};
  EXPECT_EQ(read(pipe_fds[0], buffer, sizeof buffer), 5);
  EXPECT_STREQ(buffer, "hello");
  close(pipe_fds[0]);
}

// A child's child dies with it: the kernel's word, not ours, so also after kill -9.
TEST(ChildProcess, DiesWithItsParent) {
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  absl::StatusOr<ChildProcess> child = StartMode("nested", pipe_fds[1]);
  close(pipe_fds[1]);
  ASSERT_TRUE(child.ok()) << child.status();
  pid_t grandchild = 0;
  ASSERT_EQ(read(pipe_fds[0], &grandchild, sizeof grandchild), ssize_t{sizeof grandchild});
  ASSERT_EQ(kill(grandchild, 0), 0) << "the grandchild runs";
  child->Signal(SIGKILL);
  ASSERT_TRUE(child->Wait(absl::Seconds(20)).has_value());
  // The write end of the pipe is also held by the grandchild: end of file means that it is gone.
  char byte;
  EXPECT_EQ(read(pipe_fds[0], &byte, 1), 0);
  close(pipe_fds[0]);
}

int RunChildMode(const std::string& mode) {
  if (mode == "exit7") return 7;
  if (mode == "announce") return write(3, "hello", 5) == 5 ? 0 : 1;
  if (mode == "nested") {
    absl::StatusOr<ChildProcess> grandchild = StartMode("pause", 3);
    if (!grandchild.ok()) return 1;
    const pid_t pid = grandchild->pid();
    if (write(3, &pid, sizeof pid) != ssize_t{sizeof pid}) return 1;
    pause();
  }
  pause();
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "--child-mode") == 0) return lapidary::RunChildMode(argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
