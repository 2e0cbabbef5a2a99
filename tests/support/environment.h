// Environment variables, for tests that start themselves again in a role.
#pragma once
#include <cstdlib>
#include <string>

namespace lapidary {

// Empty if it is not set.
inline std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace lapidary
