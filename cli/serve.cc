// `lapidary serve`: a whole cluster on this machine, until Ctrl-C.
#include <poll.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/local_serving.h"
#include "cli/signals.h"

namespace lapidary {
namespace {

void PrintWelcome(const std::string& address, int metrics_port) {
  std::fprintf(stderr,
               "\nReady. gRPC on %s, metrics on http://127.0.0.1:%d/metrics. Try:\n"
               "  lapidary generate --server %s --prompt 'Once upon a time,' --max-tokens 64\n"
               "  lapidary chat --server %s\n"
               "Ctrl-C drains and stops.\n",
               address.c_str(), metrics_port, address.c_str(), address.c_str());
}

// Until a stop signal (OK) or until a process ends (its error).
absl::Status Watch(LocalCluster& cluster) {
  while (!StopRequested()) {
    if (absl::Status status = cluster.Check(); !status.ok()) return status;
    std::vector<pollfd> wait = {{StopDescriptor(), POLLIN, 0}};
    for (const int fd : cluster.PollDescriptors()) wait.push_back({fd, POLLIN, 0});
    poll(wait.data(), wait.size(), -1);
  }
  return absl::OkStatus();
}

}  // namespace

int RunServe(const ServeFlags& flags, const LogFlags& log) {
  absl::StatusOr<std::unique_ptr<LocalCluster>> started =
      StartLocalCluster(flags, log, /*quiet=*/false);
  if (!started.ok()) return absl::IsCancelled(started.status()) ? 130 : Fail(started.status());
  LocalCluster& cluster = **started;
  const std::string address = absl::StrCat(flags.listen.host, ":", cluster.port());
  PrintWelcome(address, cluster.metrics_port());
  if (!flags.address_file.empty()) {
    std::ofstream file(flags.address_file, std::ios::trunc);
    file << address << "\n"
         << "127.0.0.1:" << cluster.metrics_port() << "\n";
    if (!file.flush()) {
      return Fail(absl::InternalError(absl::StrCat("cannot write ", flags.address_file)));
    }
  }

  const absl::Status lost = Watch(cluster);
  if (!lost.ok()) {
    // The coordinator has answered the clients of the lost group; let it finish and go.
    std::fprintf(stderr, "lapidary: %s; stopping\n", std::string(lost.message()).c_str());
    cluster.Stop(absl::Seconds(10)).IgnoreError();
    return 1;
  }
  std::fprintf(stderr, "\nDraining: streams in progress finish (Ctrl-C again stops at once).\n");
  const absl::Time deadline = absl::Now() + absl::Seconds(flags.drain_timeout_s);
  const absl::Status stopped = cluster.Stop(deadline - absl::Now());
  if (!stopped.ok()) return Fail(stopped);
  std::fprintf(stderr, "Stopped.\n");
  return 0;
}

}  // namespace lapidary
