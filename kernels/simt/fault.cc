#include "kernels/simt/fault.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "kernels/simt/block_state.h"
#include "kernels/simt/fiber.h"
#include "kernels/simt/thread.h"

#ifdef LAPIDARY_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace lapidary::simt {
namespace {

std::atomic<bool (*)(const void*)> mend_fault = nullptr;
void (*describe_address)(const void*, char*, size_t) = nullptr;
struct sigaction previous_segv, previous_bus;

thread_local const void* fault_address = nullptr;
thread_local bool faulted = false;

// Where a kernel's thread goes on after its fault.
[[noreturn]] void AfterFault() {
  char what[200] = "";
  if (describe_address) describe_address(fault_address, what, sizeof what);
  faulted = true;
  FailBlock({}, "illegal address %p%s", fault_address, what);
}

void OnFault(int signal, siginfo_t* info, void* context) {
  bool (*const mend)(const void*) = mend_fault;
  if (signal == SIGSEGV && mend && mend(info->si_addr)) return;
  if (current_thread) {
    // To the top of the thread's own stack, which it will not need again.
    fault_address = info->si_addr;
    auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    unsigned char* stack = static_cast<ThreadState*>(current_thread)->fiber.stack;
#ifdef LAPIDARY_SIMT_ASAN
    __asan_unpoison_memory_region(stack, kStackBytes);
#endif
    registers[REG_RSP] = reinterpret_cast<greg_t>(stack + kStackBytes - 256 - 8);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&AfterFault);
    return;
  }
  char what[200] = "", message[300];
  if (describe_address) describe_address(info->si_addr, what, sizeof what);
  if (what[0] != 0) {
    const int n =
        snprintf(message, sizeof message, "[simt] host code touches %p%s\n", info->si_addr, what);
    if (write(STDERR_FILENO, message, static_cast<size_t>(n)) < 0) _exit(139);
  }
  // Whoever handled it before does so now: the instruction is tried again.
  sigaction(signal, signal == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
}

bool Install() {
  struct sigaction action {};
  action.sa_sigaction = &OnFault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous_segv);
  sigaction(SIGBUS, &action, &previous_bus);
  return true;
}

// A stack for the handler: a kernel may have overrun its own.
class SignalStack {
 public:
  SignalStack() {
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (!(now.ss_flags & SS_DISABLE)) return;  // somebody else's will do
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const stack_t own{.ss_sp = memory_, .ss_flags = 0, .ss_size = kBytes};
    sigaltstack(&own, nullptr);
  }
  ~SignalStack() {
    if (!memory_) return;
    const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
    sigaltstack(&none, nullptr);
    munmap(memory_, kBytes);
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  void* memory_ = nullptr;
};

}  // namespace

void CatchFaults() {
  static thread_local const SignalStack stack;
  (void)stack;
  static const bool installed = Install();
  (void)installed;
}

bool TakeFault() {
  const bool taken = faulted;
  faulted = false;
  return taken;
}

void MendFaultsWith(bool (*mend)(const void*)) { mend_fault = mend; }

void DescribeFaultsWith(void (*describe)(const void*, char*, size_t)) {
  describe_address = describe;
}

}  // namespace lapidary::simt
