// The `lapidary` binary: every role in one program.
#include <cpuid.h>

#include <cstdio>
#include <string>

#include "absl/synchronization/mutex.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "common/log.h"
#include "common/mapped_faults.h"

namespace lapidary {
namespace {

LogLevel ParseLevel(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  return LogLevel::kInfo;
}

std::string ProcessName(const CommandLine& line) {
  switch (line.command) {
    case CommandLine::Command::kCoordinator:
      return "coordinator";
    case CommandLine::Command::kWorker:
      return line.worker.rank < 0 ? "worker" : "rank " + std::to_string(line.worker.rank);
    default:
      return "";
  }
}

// F16C by cpuid: clang 14 has no name for it.
bool CpuHasBaseline() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}

int Run(const CommandLine& line) {
  switch (line.command) {
    case CommandLine::Command::kExit:
      return line.exit_code;
    case CommandLine::Command::kServe:
      return RunServe(line.serve, line.log);
    case CommandLine::Command::kCoordinator:
      return RunCoordinator(line.coordinator);
    case CommandLine::Command::kWorker:
      return RunWorkerCommand(line.worker);
    case CommandLine::Command::kGenerate:
      return RunGenerate(line.generate);
    case CommandLine::Command::kChat:
      return RunChat(line.chat);
    case CommandLine::Command::kTokenize:
      return RunTokenize(line.tokenize);
    case CommandLine::Command::kInspect:
      return RunInspect(line.inspect);
    case CommandLine::Command::kDebug:
      return RunDebug(line.debug);
    case CommandLine::Command::kBench:
      return RunBench(line.bench);
    case CommandLine::Command::kTop:
      return RunTop(line.top);
    case CommandLine::Command::kDoctor:
      return RunDoctor(line.doctor);
  }
  return 2;
}

}  // namespace

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "lapidary: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace lapidary

int main(int argc, char** argv) {
  // The whole program is compiled for this baseline; say so before an illegal instruction does.
  if (!lapidary::CpuHasBaseline()) {
    std::fprintf(stderr,
                 "lapidary: this CPU lacks AVX2, FMA, F16C or BMI2 (x86-64-v3), which "
                 "Lapidary needs\n");
    return 1;
  }
#ifdef NDEBUG
  // The library's builders left its search for deadlocks on: a graph walk in every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
  const lapidary::CommandLine line = lapidary::ParseCommandLine(argc, argv);
  lapidary::InitLog({.level = lapidary::ParseLevel(line.log.level),
                     .json = line.log.format == "json",
                     .process = lapidary::ProcessName(line)});
  lapidary::InstallStopSignals();
  lapidary::InstallMappedFaultHandler();
  return lapidary::Run(line);
}
