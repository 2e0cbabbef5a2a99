// CHECK ends the process when an invariant of ours is broken. Never for input: that is a Status.
#pragma once
#include <cstdio>
#include <cstdlib>

namespace lapidary::internal {
[[noreturn]] inline void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, expression);
  std::abort();
}
}  // namespace lapidary::internal

#define LAPIDARY_CHECK(expression) \
  ((expression) ? (void)0 : ::lapidary::internal::CheckFailed(#expression, __FILE__, __LINE__))
