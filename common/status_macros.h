// RETURN_IF_ERROR and ASSIGN_OR_RETURN, which absl 20220623 does not have.
#pragma once
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status _status = (expression); !_status.ok()) return _status; \
  } while (false)

#define LAPIDARY_CONCAT_INNER(a, b) a##b
#define LAPIDARY_CONCAT(a, b) LAPIDARY_CONCAT_INNER(a, b)

// `target` may be a declaration, so it can not stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define ASSIGN_OR_RETURN(target, expression) \
  LAPIDARY_ASSIGN_OR_RETURN(LAPIDARY_CONCAT(_statusor_, __LINE__), target, expression)
#define LAPIDARY_ASSIGN_OR_RETURN(statusor, target, expression) \
  auto statusor = (expression);                                 \
  if (!statusor.ok()) return statusor.status();                 \
  target = *std::move(statusor)
// NOLINTEND(bugprone-macro-parentheses)
