#include "worker/comm/peer_watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

constexpr int kAskMillis = 500;

int OpenPidfd(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

bool GoneByKill(pid_t pid) { return kill(pid, 0) != 0 && errno == ESRCH; }

}  // namespace

bool ProcessAlive(pid_t pid) {
  const int fd = OpenPidfd(pid);
  if (fd < 0) return errno != ESRCH && !GoneByKill(pid);
  pollfd ready = {fd, POLLIN, 0};
  const bool ended = poll(&ready, 1, 0) > 0;
  close(fd);
  return !ended;
}

absl::StatusOr<std::unique_ptr<PeerWatch>> PeerWatch::Start(
    std::vector<pid_t> pids, std::function<void(int rank, pid_t pid)> on_exit) {
  const int stop_fd = eventfd(0, EFD_CLOEXEC);
  if (stop_fd < 0) {
    return absl::InternalError(absl::StrFormat("eventfd failed: %s", strerror(errno)));
  }
  std::vector<Peer> peers;
  for (size_t rank = 0; rank < pids.size(); ++rank) {
    if (pids[rank] == 0 || pids[rank] == getpid()) continue;
    peers.push_back(Peer{static_cast<int>(rank), pids[rank], OpenPidfd(pids[rank])});
  }
  return std::unique_ptr<PeerWatch>(new PeerWatch(std::move(peers), stop_fd, std::move(on_exit)));
}

PeerWatch::PeerWatch(std::vector<Peer> peers, int stop_fd, std::function<void(int, pid_t)> on_exit)
    : peers_(std::move(peers)), stop_fd_(stop_fd), on_exit_(std::move(on_exit)) {
  if (!peers_.empty()) thread_ = std::thread([this] { Watch(); });
}

PeerWatch::~PeerWatch() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stop_fd_, &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  for (const Peer& peer : peers_) {
    if (peer.pidfd >= 0) close(peer.pidfd);
  }
  close(stop_fd_);
}

void PeerWatch::Watch() {
  while (!peers_.empty()) {
    std::vector<pollfd> fds = {{stop_fd_, POLLIN, 0}};
    int timeout_ms = -1;
    for (const Peer& peer : peers_) {
      fds.push_back(pollfd{peer.pidfd, POLLIN, 0});  // poll ignores a negative descriptor
      if (peer.pidfd < 0) timeout_ms = kAskMillis;
    }
    poll(fds.data(), fds.size(), timeout_ms);
    if (fds[0].revents != 0) return;
    std::vector<Peer> living;
    for (size_t i = 0; i < peers_.size(); ++i) {
      const Peer& peer = peers_[i];
      const bool gone = peer.pidfd >= 0 ? fds[i + 1].revents != 0 : GoneByKill(peer.pid);
      if (!gone) {
        living.push_back(peer);
        continue;
      }
      if (peer.pidfd >= 0) close(peer.pidfd);
      on_exit_(peer.rank, peer.pid);
    }
    peers_ = std::move(living);
  }
}

}  // namespace lapidary
