// W3C trace context: the `traceparent` a client sends, and the child of it that is forwarded.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace lapidary {

struct TraceContext {
  std::string trace_id;  // 32 hex digits, empty when the client sent none (or nonsense)
  std::string flags;     // 2 hex digits

  bool empty() const { return trace_id.empty(); }
  // The traceparent to forward: same trace, span `span_id` as the parent. "" when empty.
  std::string Child(uint64_t span_id) const;
};

// Version 00 only; anything malformed (also an all-zero trace or span) counts as absent.
TraceContext ParseTraceparent(std::string_view header);

}  // namespace lapidary
