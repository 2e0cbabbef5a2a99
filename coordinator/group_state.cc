#include "coordinator/group_state.h"

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace lapidary {

std::string GroupState::Describe() const {
  std::string out;
  switch (phase) {
    case GroupPhase::kWaiting:
      out = absl::StrFormat("%d of %d workers connected", connected, size);
      if (!missing.empty()) {
        absl::StrAppendFormat(&out, " (rank%s %s missing)", missing.size() > 1 ? "s" : "",
                              absl::StrJoin(missing, ", ") + (missing.size() > 1 ? " are" : " is"));
      }
      break;
    case GroupPhase::kLoading:
      out = absl::StrFormat("loading: %d of %d MB", loaded_bytes >> 20, total_bytes >> 20);
      break;
    case GroupPhase::kReady:
      out = "ready";
      break;
    case GroupPhase::kDraining:
      out = "draining";
      break;
  }
  if (!last_failure.empty()) out += "; " + last_failure;
  return out;
}

}  // namespace lapidary
