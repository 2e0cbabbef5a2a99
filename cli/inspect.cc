// `lapidary inspect`: what a checkpoint is and needs.
#include <cstdio>
#include <string>

#include "cli/commands.h"
#include "model/inspect_report.h"

namespace lapidary {

int RunInspect(const InspectFlags& flags) {
  const absl::StatusOr<std::string> report = InspectReport(flags.model_path);
  if (!report.ok()) return Fail(report.status());
  std::fputs(report->c_str(), stdout);
  return 0;
}

}  // namespace lapidary
