#include "cli/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace lapidary {
namespace {

std::atomic<int> stop_signals{0};
int stop_pipe[2] = {-1, -1};

void OnSignal(int) {
  stop_signals.fetch_add(1);
  const char byte = 1;
  [[maybe_unused]] const ssize_t n = write(stop_pipe[1], &byte, 1);
}

}  // namespace

void InstallStopSignals() {
  if (pipe2(stop_pipe, O_CLOEXEC | O_NONBLOCK) != 0) return;
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

bool StopRequested() { return stop_signals.load() > 0; }
int StopSignals() { return stop_signals.load(); }
int StopDescriptor() { return stop_pipe[0]; }

void WaitForStop() {
  while (!StopRequested()) {
    pollfd wait = {stop_pipe[0], POLLIN, 0};
    poll(&wait, 1, -1);
  }
}

}  // namespace lapidary
