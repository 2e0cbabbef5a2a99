// One function per subcommand; each returns the process's exit code.
#pragma once
#include "absl/status/status.h"
#include "cli/options.h"

namespace lapidary {

int RunServe(const ServeFlags& flags, const LogFlags& log);
int RunCoordinator(const CoordinatorFlags& flags);
int RunWorkerCommand(const WorkerFlags& flags);
int RunGenerate(const GenerateFlags& flags);
int RunChat(const ChatFlags& flags);
int RunTokenize(const TokenizeFlags& flags);
int RunInspect(const InspectFlags& flags);
int RunDebug(const DebugFlags& flags);
int RunBench(const BenchFlags& flags);
int RunTop(const TopFlags& flags);
int RunDoctor(const DoctorFlags& flags);

// Prints "lapidary: MESSAGE" to stderr; 1.
int Fail(const absl::Status& status);

}  // namespace lapidary
