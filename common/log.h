// One line per event: a fixed message and fields. LogInfo("worker ready", {{"rank", 0}, {"pages",
// n}});
//
// Error: someone must act. Warning: served, but degraded. Info: lifecycle. Debug: per step.
// Nothing per token, and never a prompt's text. Lines go to stderr, as text or as JSON.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

namespace lapidary {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

class LogField {
 public:
  LogField(std::string_view key, std::string_view value) : key(key), value(value), quoted(true) {}
  LogField(std::string_view key, const std::string& value) : key(key), value(value), quoted(true) {}
  LogField(std::string_view key, const char* value) : key(key), value(value), quoted(true) {}
  LogField(std::string_view key, bool value)
      : key(key), value(value ? "true" : "false"), quoted(false) {}
  template <class T>
  requires(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
      LogField(std::string_view key, T value)
      : key(key), value(std::to_string(value)), quoted(false) {}

  std::string_view key;
  std::string value;
  bool quoted;
};

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  bool json = false;
  std::string process;  // e.g. "coordinator", "worker 1": on every line
};
// Once, in main, before any other thread.
void InitLog(const LogOptions& options);

void LogDebug(std::string_view message, std::initializer_list<LogField> fields = {});
void LogInfo(std::string_view message, std::initializer_list<LogField> fields = {});
void LogWarning(std::string_view message, std::initializer_list<LogField> fields = {});
void LogError(std::string_view message, std::initializer_list<LogField> fields = {});

}  // namespace lapidary
