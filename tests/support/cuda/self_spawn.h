// For tests with several processes: the test's own binary once more, in a role that its main looks
// up in the environment.
#pragma once
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

extern char** environ;

namespace lapidary {

// A variable of the environment; empty if it is not set.
inline std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

inline pid_t SpawnSelf(const std::map<std::string, std::string>& variables) {
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  char self[] = "/proc/self/exe";
  char* arguments[] = {self, nullptr};
  pid_t pid = 0;
  EXPECT_EQ(posix_spawn(&pid, self, nullptr, nullptr, arguments, environ), 0);
  for (const auto& entry : variables) unsetenv(entry.first.c_str());
  return pid;
}
// A signal's number, negative, if one ended it.
inline int ExitCode(pid_t pid) {
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline std::string ToHex(std::string_view bytes) {
  std::string hex;
  char two[3];
  for (const char c : bytes) {
    snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(c));
    hex += two;
  }
  return hex;
}
inline std::string FromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

}  // namespace lapidary
