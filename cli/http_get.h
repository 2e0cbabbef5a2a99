// GET of one page without TLS: /readyz while a server starts, /metrics for `lapidary top`.
#pragma once
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lapidary {

struct HttpPage {
  int code = 0;
  std::string body;
};
// UNAVAILABLE when nothing answers within `timeout`; INVALID_ARGUMENT for an address that is not
// HOST:PORT. The page of a server that stops in the middle is UNAVAILABLE too.
absl::StatusOr<HttpPage> HttpGet(const std::string& address, const std::string& path,
                                 absl::Duration timeout);
// On loopback.
absl::StatusOr<HttpPage> HttpGet(int port, const std::string& path, absl::Duration timeout);

}  // namespace lapidary
