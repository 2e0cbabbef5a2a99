#include "coordinator/trace_context.h"

#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

bool LowerHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool AllZero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

std::string TraceContext::Child(uint64_t span_id) const {
  if (empty()) return "";
  return absl::StrFormat("00-%s-%016x-%s", trace_id, span_id, flags);
}

TraceContext ParseTraceparent(std::string_view header) {
  // 00-<32 trace>-<16 span>-<2 flags>
  if (header.size() != 55 || header.substr(0, 3) != "00-" || header[35] != '-' ||
      header[52] != '-') {
    return {};
  }
  const std::string_view trace = header.substr(3, 32), span = header.substr(36, 16),
                         flags = header.substr(53, 2);
  if (!LowerHex(trace) || !LowerHex(span) || !LowerHex(flags) || AllZero(trace) || AllZero(span)) {
    return {};
  }
  return TraceContext{std::string(trace), std::string(flags)};
}

}  // namespace lapidary
