#include "cli/local_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/cpu_affinity.h"
#include "cli/http_get.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

std::string EndOf(const ChildProcess& child, int status) {
  return absl::StrFormat("%s (process %d) %s", child.name(), child.pid(),
                         DescribeWaitStatus(status));
}

// One line from the pipe, or what came before it closed.
std::string ReadLine(int fd, absl::Duration timeout) {
  std::string line;
  const absl::Time deadline = absl::Now() + timeout;
  while (line.empty() || line.back() != '\n') {
    pollfd wait = {fd, POLLIN, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0 || poll(&wait, 1, static_cast<int>(left)) <= 0) break;
    char c;
    if (read(fd, &c, 1) != 1) break;
    line.push_back(c);
  }
  return line;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(
    const LocalClusterOptions& options, const std::function<void(std::string_view)>& progress,
    const std::function<bool()>& interrupted) {
  std::unique_ptr<LocalCluster> cluster(new LocalCluster);
  cluster->children_.reserve(static_cast<size_t>(options.ranks) + 1);
  RETURN_IF_ERROR(cluster->StartCoordinator(options));
  RETURN_IF_ERROR(cluster->StartWorkers(options));
  RETURN_IF_ERROR(cluster->AwaitReady(options, progress, interrupted));
  return cluster;
}

absl::Status LocalCluster::StartCoordinator(const LocalClusterOptions& options) {
  int announce[2];
  if (pipe2(announce, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrFormat("pipe: %s", strerror(errno)));
  }
  std::vector<std::string> args = {"coordinator"};
  args.insert(args.end(), options.coordinator_args.begin(), options.coordinator_args.end());
  args.insert(args.end(), {"--announce-fd", "3"});
  absl::StatusOr<ChildProcess> child = ChildProcess::Start("coordinator", args, announce[1]);
  close(announce[1]);
  const std::string line = child.ok() ? ReadLine(announce[0], absl::Minutes(1)) : "";
  close(announce[0]);
  RETURN_IF_ERROR(child.status());
  children_.push_back(*std::move(child));
  if (sscanf(line.c_str(), "%d %d %d", &port_, &worker_port_, &metrics_port_) != 3) {
    children_[0].Wait(absl::Seconds(5));
    RETURN_IF_ERROR(Check());
    return absl::InternalError("the coordinator did not say where it listens");
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::StartWorkers(const LocalClusterOptions& options) {
  const std::vector<int> cpus = AvailableCpus();
  for (int rank = 0; rank < options.ranks; ++rank) {
    const std::vector<int> mine = CpusOfRank(cpus, options.ranks, rank);
    const int threads =
        options.threads_per_rank > 0 ? options.threads_per_rank : std::max<int>(1, mine.size());
    std::vector<std::string> args = {"worker",
                                     "--coordinator",
                                     absl::StrCat("127.0.0.1:", worker_port_),
                                     "--rank",
                                     absl::StrCat(rank),
                                     "--threads",
                                     absl::StrCat(threads)};
    if (threads == static_cast<int>(mine.size())) {
      args.insert(args.end(), {"--cpus", absl::StrJoin(mine, ",")});
    }
    args.insert(args.end(), options.worker_args.begin(), options.worker_args.end());
    ASSIGN_OR_RETURN(ChildProcess child,
                     ChildProcess::Start(absl::StrCat("rank ", rank), args, /*announce_fd=*/-1));
    children_.push_back(std::move(child));
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::AwaitReady(const LocalClusterOptions& options,
                                      const std::function<void(std::string_view)>& progress,
                                      const std::function<bool()>& interrupted) {
  const absl::Time deadline = absl::Now() + options.start_timeout;
  std::string last;
  while (absl::Now() < deadline) {
    RETURN_IF_ERROR(Check());
    if (interrupted()) return absl::CancelledError("interrupted while starting");
    absl::StatusOr<HttpPage> page = HttpGet(metrics_port_, "/readyz", absl::Seconds(2));
    if (page.ok() && page->code == 200) return absl::OkStatus();
    if (page.ok() && page->body != last) {
      last = page->body;
      progress(last.substr(0, last.find('\n')));
    }
    std::vector<pollfd> wait;
    for (const int fd : PollDescriptors()) wait.push_back({fd, POLLIN, 0});
    poll(wait.data(), wait.size(), 20);
  }
  return absl::DeadlineExceededError(
      absl::StrFormat("not ready after %s: %s", absl::FormatDuration(options.start_timeout), last));
}

absl::Status LocalCluster::Check() {
  for (ChildProcess& child : children_) {
    const std::optional<int> status = child.TryWait();
    if (status.has_value()) return absl::UnavailableError(EndOf(child, *status));
  }
  return absl::OkStatus();
}

std::vector<int> LocalCluster::PollDescriptors() const {
  std::vector<int> descriptors;
  for (const ChildProcess& child : children_) descriptors.push_back(child.pidfd());
  return descriptors;
}

absl::Status LocalCluster::Stop(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  // The coordinator drains and tells the workers; a worker that outlives it is told by signal.
  children_[0].Signal(SIGTERM);
  std::vector<std::string> bad;
  bool late = false;
  for (size_t i = 0; i < children_.size(); ++i) {
    if (i > 0) children_[i].Signal(SIGTERM);
    const std::optional<int> status =
        children_[i].Wait(std::max(deadline - absl::Now(), absl::Milliseconds(100)));
    if (status.has_value()) {
      if (*status != 0) bad.push_back(EndOf(children_[i], *status));
      continue;
    }
    late = true;
    bad.push_back(absl::StrFormat("%s did not end within %s and was killed", children_[i].name(),
                                  absl::FormatDuration(timeout)));
    children_[i].Signal(SIGKILL);
    children_[i].Wait(absl::Seconds(5));
  }
  if (bad.empty()) return absl::OkStatus();
  return absl::Status(late ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kUnavailable,
                      absl::StrJoin(bad, "; "));
}

}  // namespace lapidary
