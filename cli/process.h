// Child processes of `lapidary serve`: started with the same binary, ended with their parent.
#pragma once
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lapidary {

// One running child. The destructor kills it if it still runs.
class ChildProcess {
 public:
  // Runs this binary with `args` (without argv[0]) in a process group of its own, so that a Ctrl-C
  // meant for us does not reach it. The kernel kills it when we die. `announce_fd` >= 0 becomes
  // fd 3.
  static absl::StatusOr<ChildProcess> Start(std::string name, const std::vector<std::string>& args,
                                            int announce_fd);
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ChildProcess(const ChildProcess&) = delete;

  const std::string& name() const { return name_; }
  pid_t pid() const { return pid_; }
  // Readable when the child has ended: for poll().
  int pidfd() const { return pidfd_; }
  void Signal(int signal) const;
  // The wait status once it has ended; reaps it. Nothing while it runs.
  std::optional<int> TryWait();
  // Waits at most `timeout`.
  std::optional<int> Wait(absl::Duration timeout);

 private:
  ChildProcess(std::string name, pid_t pid, int pidfd)
      : name_(std::move(name)), pid_(pid), pidfd_(pidfd) {}

  std::string name_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  std::optional<int> status_;
};

// "exited with code 1", "was killed by signal 9 (Killed)".
std::string DescribeWaitStatus(int status);

}  // namespace lapidary
