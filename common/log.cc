#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace lapidary {
namespace {

LogOptions& Options() {
  static LogOptions options;
  return options;
}

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto l = std::make_shared<spdlog::logger>("lapidary",
                                              std::make_shared<spdlog::sinks::stderr_sink_mt>());
    l->flush_on(spdlog::level::debug);
    l->set_pattern("%v");
    return l;
  }();
  return *logger;
}

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (u < 0x20) {
      static constexpr char kHex[] = "0123456789abcdef";
      *out += "\\u00";
      out->push_back(kHex[u >> 4]);
      out->push_back(kHex[u & 15]);
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

std::string Timestamp() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc;
  gmtime_r(&now.tv_sec, &utc);
  char buffer[40];
  const size_t n = strftime(buffer, sizeof buffer, "%Y-%m-%dT%H:%M:%S", &utc);
  snprintf(buffer + n, sizeof buffer - n, ".%03ldZ", now.tv_nsec / 1000000);
  return buffer;
}

void Write(LogLevel level, const char* name, std::string_view message,
           std::initializer_list<LogField> fields) {
  const LogOptions& options = Options();
  if (level < options.level) return;
  std::string line;
  if (options.json) {
    line = "{\"time\":\"" + Timestamp() + "\",\"level\":\"" + name + "\",\"process\":";
    AppendJsonString(options.process, &line);
    line += ",\"message\":";
    AppendJsonString(message, &line);
    for (const LogField& f : fields) {
      line.push_back(',');
      AppendJsonString(f.key, &line);
      line.push_back(':');
      if (f.quoted) {
        AppendJsonString(f.value, &line);
      } else {
        line += f.value;
      }
    }
    line.push_back('}');
  } else {
    line = Timestamp() + " " + name;
    if (!options.process.empty()) line += " [" + options.process + "]";
    line += " ";
    line += message;
    for (const LogField& f : fields) {
      line.push_back(' ');
      line += f.key;
      line.push_back('=');
      if (f.quoted) {
        AppendJsonString(f.value, &line);
      } else {
        line += f.value;
      }
    }
  }
  Logger().info("{}", line);
}

}  // namespace

void InitLog(const LogOptions& options) { Options() = options; }

void LogDebug(std::string_view message, std::initializer_list<LogField> fields) {
  Write(LogLevel::kDebug, "debug", message, fields);
}
void LogInfo(std::string_view message, std::initializer_list<LogField> fields) {
  Write(LogLevel::kInfo, "info", message, fields);
}
void LogWarning(std::string_view message, std::initializer_list<LogField> fields) {
  Write(LogLevel::kWarning, "warning", message, fields);
}
void LogError(std::string_view message, std::initializer_list<LogField> fields) {
  Write(LogLevel::kError, "error", message, fields);
}

}  // namespace lapidary
