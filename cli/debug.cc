// `lapidary debug record|compare`: finds the first layer where two runs of a model part.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "worker/debug_compare.h"

namespace lapidary {
namespace {

RunnerOptions Options(const DebugFlags& flags) {
  RunnerOptions options;
  options.compute = flags.compute == "fp32"   ? ComputeType::kFp32
                    : flags.compute == "bf16" ? ComputeType::kBf16
                                              : ComputeType::kInt8;
  options.threads = flags.threads;
  return options;
}

// 0: no difference; 3: a difference was found and printed.
absl::StatusOr<int> Run(const DebugFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                   Checkpoint::Open(flags.model_path));
  if (flags.action == "record") {
    if (flags.prompt_ids.empty()) {
      return absl::InvalidArgumentError("record needs --prompt-ids, e.g. --prompt-ids 2,5,7");
    }
    RETURN_IF_ERROR(RecordForward(*checkpoint, Options(flags), flags.prompt_ids, flags.file));
    std::fprintf(stderr, "Recorded %zu tokens to %s.\n", flags.prompt_ids.size(),
                 flags.file.c_str());
    return 0;
  }
  ASSIGN_OR_RETURN(const CompareReport report,
                   CompareForward(*checkpoint, Options(flags), flags.file));
  std::fputs(report.Format().c_str(), stdout);
  return report.first < 0 ? 0 : 3;
}

}  // namespace

int RunDebug(const DebugFlags& flags) {
  const absl::StatusOr<int> code = Run(flags);
  return code.ok() ? *code : Fail(code.status());
}

}  // namespace lapidary
