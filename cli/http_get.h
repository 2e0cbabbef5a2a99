// GET of one small page on loopback: /readyz while a server starts.
#pragma once
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lapidary {

struct HttpPage {
  int code = 0;
  std::string body;
};
// UNAVAILABLE when nothing answers within `timeout`.
absl::StatusOr<HttpPage> HttpGet(int port, const std::string& path, absl::Duration timeout);

}  // namespace lapidary
