#include "worker/plan_channel.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"

namespace lapidary {
namespace {

// Message i: of many lengths, some longer than the rings below, recognisable at every byte.
std::string Message(int i) {
  std::string m(static_cast<size_t>(i * i * 37 % 3001), '\0');
  for (size_t k = 0; k < m.size(); ++k) m[k] = static_cast<char>(i + k * 31);
  return m;
}
constexpr int kMessages = 200;

absl::Status ReceiveAll(PlanReceiver& receiver) {
  for (int i = 0; i < kMessages; ++i) {
    const absl::StatusOr<std::string> got = receiver.Receive();
    if (!got.ok()) return got.status();
    if (*got != Message(i)) return absl::InternalError(absl::StrFormat("message %d differs", i));
  }
  return absl::OkStatus();
}

absl::Status SendAll(PlanSender& sender) {
  for (int i = 0; i < kMessages; ++i) {
    if (absl::Status s = sender.Send(Message(i)); !s.ok()) return s;
  }
  return absl::OkStatus();
}

TEST(PlanChannel, EveryReceiverGetsEveryMessageInOrder) {
  InprocPlanChannel channel = CreateInprocPlanChannel(4, 1024);
  std::vector<absl::Status> results(3);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] { results[i] = ReceiveAll(*channel.receivers[i]); });
  }
  EXPECT_TRUE(SendAll(*channel.sender).ok());
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
}

TEST(PlanChannel, OneRankNeedsNoChannel) {
  InprocPlanChannel channel = CreateInprocPlanChannel(1, 64);
  EXPECT_TRUE(SendAll(*channel.sender).ok());
}

TEST(PlanChannel, LaggingRankIsNamed) {
  InprocPlanChannel channel = CreateInprocPlanChannel(3, 64, absl::Milliseconds(30));
  absl::Status cut_short;
  std::thread reader([&] { cut_short = channel.receivers[0]->Receive().status(); });
  const absl::Status status = channel.sender->Send(std::string(200, 'x'));
  reader.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "rank 2 has not taken a plan for 30ms");
  // Rank 1 was in the middle of the message and learns why it will not get the rest.
  EXPECT_EQ(cut_short, absl::UnavailableError("rank 2 has not taken a plan for 30ms"));
  EXPECT_EQ(channel.sender->status(), cut_short);
}

TEST(PlanChannel, AbortWakesAReceiver) {
  InprocPlanChannel channel = CreateInprocPlanChannel(2);
  absl::Status status;
  std::thread reader([&] { status = channel.receivers[0]->Receive().status(); });
  channel.sender->Abort("the coordinator is gone");
  reader.join();
  EXPECT_EQ(status.message(), "the coordinator is gone");
}

TEST(PlanChannel, WhatWasSentBeforeTheEndIsDelivered) {
  InprocPlanChannel channel = CreateInprocPlanChannel(2);
  ASSERT_TRUE(channel.sender->Send("last words").ok());
  channel.sender->Abort("gone");
  const absl::StatusOr<std::string> got = channel.receivers[0]->Receive();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, "last words");
  EXPECT_EQ(channel.receivers[0]->Receive().status().message(), "gone");
}

#if !defined(__SANITIZE_THREAD__)  // forks
PlanChannelOptions Options(const std::string& name, int rank, int size) {
  PlanChannelOptions options;
  options.name = name;
  options.rank = rank;
  options.size = size;
  options.ring_bytes = 1024;
  options.connect_timeout = absl::Seconds(20);
  return options;
}

std::string UniqueName(const char* test) {
  return absl::StrFormat("test-plans-%s-%d", test, getpid());
}

// A child that reads everything and then stays until the leader's end.
pid_t ForkFollower(const std::string& name, int rank, int size) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  auto receiver = CreateShmPlanReceiver(Options(name, rank, size));
  if (!receiver.ok()) _exit(2);
  if (!ReceiveAll(**receiver).ok()) _exit(3);
  const absl::Status end = (*receiver)->Receive().status();
  _exit(absl::StartsWith(end.message(), "rank 0 (process ") ? 0 : 4);
}

int ExitCode(pid_t pid) {
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(PlanChannel, FollowersSeeTheLeaderDie) {
  const std::string name = UniqueName("leader");
  const pid_t one = ForkFollower(name, 1, 3);
  const pid_t two = ForkFollower(name, 2, 3);
  const pid_t leader = fork();
  if (leader == 0) {
    auto sender = CreateShmPlanSender(Options(name, 0, 3));
    if (!sender.ok() || !SendAll(**sender).ok()) _exit(2);
    kill(getpid(), SIGKILL);
  }
  EXPECT_EQ(ExitCode(one), 0);
  EXPECT_EQ(ExitCode(two), 0);
  EXPECT_EQ(ExitCode(leader), -SIGKILL);
}

TEST(PlanChannel, LeaderSeesAFollowerDie) {
  const std::string name = UniqueName("follower");
  const pid_t victim = fork();
  if (victim == 0) {
    auto receiver = CreateShmPlanReceiver(Options(name, 1, 2));
    if (!receiver.ok()) _exit(2);
    while (true) pause();
  }
  auto sender = CreateShmPlanSender(Options(name, 0, 2));
  ASSERT_TRUE(sender.ok()) << sender.status();
  EXPECT_TRUE((*sender)->status().ok());
  kill(victim, SIGKILL);
  const absl::Status status = (*sender)->Send(std::string(1 << 20, 'x'));
  EXPECT_EQ(status.message(), absl::StrFormat("rank 1 (process %d) died", victim));
  EXPECT_EQ((*sender)->status(), status);
  EXPECT_EQ(ExitCode(victim), -SIGKILL);
}
#endif

}  // namespace
}  // namespace lapidary
