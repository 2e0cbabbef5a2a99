// Notices when another process of the group ends, however it ends.
//
// Waits on pidfds, which tell of a zombie too (kill(pid, 0) does not), and costs nothing while all
// live. Where pidfds are refused (an old kernel, a strict sandbox), asks twice a second instead.
#pragma once
#include <sys/types.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace lapidary {

class PeerWatch {
 public:
  // pids[r] is rank r's; 0 and this process's own are not watched. `on_exit` runs on the watching
  // thread, once per rank.
  static absl::StatusOr<std::unique_ptr<PeerWatch>> Start(
      std::vector<pid_t> pids, std::function<void(int rank, pid_t pid)> on_exit);
  ~PeerWatch();  // joins the thread
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

 private:
  struct Peer {
    int rank;
    pid_t pid;
    int pidfd;  // -1: asked with kill(pid, 0)
  };
  PeerWatch(std::vector<Peer> peers, int stop_fd, std::function<void(int, pid_t)> on_exit);
  void Watch();

  std::vector<Peer> peers_;  // the thread's own once started
  const int stop_fd_;        // an eventfd: readable means stop
  const std::function<void(int, pid_t)> on_exit_;
  std::thread thread_;
};

// True unless the process has certainly ended. A zombie has ended.
bool ProcessAlive(pid_t pid);

}  // namespace lapidary
