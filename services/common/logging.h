// Structured logs on standard error: one line per event, logfmt or JSON.
//
//   LogInfo("worker registered", {{"worker", name}, {"address", address}});
//   time=2026-01-01T10:00:00.000Z level=info process=router msg="worker registered" worker=p0 ...
//
// Never pass a prompt or generated text. Lines are cut at 8 KiB. Thread-safe; before InitLogging()
// the defaults of LoggingSettings apply.
#ifndef HYSERVE_SERVICES_COMMON_LOGGING_H_
#define HYSERVE_SERVICES_COMMON_LOGGING_H_

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/strings.h"
#include "services/common/config.h"

namespace hyserve::common {

inline constexpr size_t kMaxLogLineBytes = 8 << 10;

struct LogField {
  LogField(std::string_view k, std::string_view v) : key(k), value(v), is_text(true) {}
  LogField(std::string_view k, const char* v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, const std::string& v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, const absl::Status& v);
  LogField(std::string_view k, bool v) : key(k), value(v ? "true" : "false") {}
  template <typename T>
    requires(std::integral<T> || std::floating_point<T>)
  LogField(std::string_view k, T v) : key(k), value(StrCat(v)) {}

  std::string_view key;
  std::string value;
  bool is_text = false;
};
using LogFields = std::initializer_list<LogField>;

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// `process` is part of every line: the worker's name, or "router".
void InitLogging(const LoggingSettings& settings, std::string_view process);
void Log(LogLevel level, std::string_view message, LogFields fields = {});
bool LogEnabled(LogLevel level);

inline void LogDebug(std::string_view message, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kDebug)) Log(LogLevel::kDebug, message, fields);
}
inline void LogInfo(std::string_view message, LogFields fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(std::string_view message, LogFields fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(std::string_view message, LogFields fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// The line itself, without time stamp and newline. Pure; exposed for tests.
std::string FormatLogLine(bool json, LogLevel level, std::string_view process,
                          std::string_view message, LogFields fields);

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_LOGGING_H_
