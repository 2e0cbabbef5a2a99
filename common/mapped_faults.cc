#include "common/mapped_faults.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "absl/base/const_init.h"
#include "absl/synchronization/mutex.h"

namespace lapidary {
namespace {

struct Mapping {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  char name[512] = {};
};

// A signal handler sees nothing but globals, and may not lock: writers do, the handler reads what
// is complete, `begin` being written last.
constexpr size_t kMappings = 512;
Mapping mappings[kMappings];
ABSL_CONST_INIT absl::Mutex writers(absl::kConstInit);

void Say(const char* text) {
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, text, std::strlen(text));
}

// Calls only what signal handlers may call.
void OnBusError(int signal_number, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping& m : mappings) {
    const uintptr_t begin = m.begin.load(std::memory_order_acquire);
    if (info->si_code <= 0 || begin == 0 || address < begin || address >= m.end) continue;
    Say("lapidary: ");
    Say(m.name);
    Say(" was truncated or its disk failed while it was mapped\n");
    _exit(1);
  }
  signal(signal_number, SIG_DFL);
  raise(signal_number);  // takes effect when this returns
}

}  // namespace

void InstallMappedFaultHandler() {
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

void NameMapping(const void* data, size_t size, std::string_view name) {
  absl::MutexLock lock(&writers);
  for (Mapping& m : mappings) {
    if (m.begin.load(std::memory_order_relaxed) != 0) continue;
    const size_t length = std::min(name.size(), sizeof m.name - 1);
    std::memcpy(m.name, name.data(), length);
    m.name[length] = '\0';
    m.end = reinterpret_cast<uintptr_t>(data) + size;
    m.begin.store(reinterpret_cast<uintptr_t>(data), std::memory_order_release);
    return;
  }
}

void ForgetMapping(const void* data) {
  absl::MutexLock lock(&writers);
  for (Mapping& m : mappings) {
    if (m.begin.load(std::memory_order_relaxed) != reinterpret_cast<uintptr_t>(data)) continue;
    m.begin.store(0, std::memory_order_release);
    return;
  }
}

}  // namespace lapidary
