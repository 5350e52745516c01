#include "services/common/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "absl/strings/str_format.h"

namespace hyserve::common {
namespace {

struct Sink {
  std::shared_ptr<spdlog::logger> logger;
  std::string process = "hyserve";
  bool json = false;
};

std::mutex g_mutex;
std::atomic<LogLevel> g_level{LogLevel::kInfo};

Sink& GlobalSink() {
  static Sink* const sink = new Sink{std::make_shared<spdlog::logger>(
      "hyserve", std::make_shared<spdlog::sinks::stderr_sink_mt>())};
  return *sink;
}

constexpr std::string_view kLevelNames[] = {"debug", "info", "warning", "error"};

std::string_view LevelName(LogLevel level) { return kLevelNames[static_cast<int>(level)]; }

// Inside a quoted string of either format: JSON's escapes, which logfmt readers know too.
void AppendQuoted(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"': *out += "\\\""; break;
      case '\\': *out += "\\\\"; break;
      case '\n': *out += "\\n"; break;
      case '\r': *out += "\\r"; break;
      case '\t': *out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned char>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

bool IsBare(std::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= 0x20 || c == '"' || c == '=' || c == '\\') return false;
  }
  return true;
}

void AppendField(bool json, std::string_view key, std::string_view value, bool is_text,
                 std::string* out) {
  if (json) {
    *out += out->empty() ? "{\"" : ",\"";
    *out += key;
    *out += "\":";
    if (is_text) {
      AppendQuoted(value, out);
    } else {
      *out += value;
    }
    return;
  }
  if (!out->empty()) out->push_back(' ');
  *out += key;
  out->push_back('=');
  if (IsBare(value)) {
    *out += value;
  } else {
    AppendQuoted(value, out);
  }
}

// Cuts a value so that the whole line stays readable and below the limit.
std::string_view Cut(std::string_view value) { return value.substr(0, kMaxLogLineBytes / 4); }

}  // namespace

LogField::LogField(std::string_view k, const absl::Status& v)
    : key(k), value(v.ToString(absl::StatusToStringMode::kDefault)), is_text(true) {}

std::string FormatLogLine(bool json, LogLevel level, std::string_view process,
                          std::string_view message, LogFields fields) {
  std::string line;
  AppendField(json, "level", LevelName(level), true, &line);
  AppendField(json, "process", process, true, &line);
  AppendField(json, "msg", Cut(message), true, &line);
  for (const LogField& field : fields) {
    const size_t before = line.size();
    AppendField(json, field.key, Cut(field.value), field.is_text, &line);
    if (line.size() > kMaxLogLineBytes - 64) {  // room for the time stamp and the bracket
      line.resize(before);
      AppendField(json, "cut", "true", false, &line);
      break;
    }
  }
  if (json) line.push_back('}');
  return line;
}

void InitLogging(const LoggingSettings& settings, std::string_view process) {
  std::lock_guard<std::mutex> lock(g_mutex);
  Sink& sink = GlobalSink();
  sink.process = std::string(process);
  sink.json = settings.format == "json";
  for (int i = 0; i < 4; ++i) {
    if (settings.level == kLevelNames[i]) g_level = static_cast<LogLevel>(i);
  }
  sink.logger->set_level(spdlog::level::trace);
  sink.logger->flush_on(spdlog::level::trace);
}

bool LogEnabled(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

void Log(LogLevel level, std::string_view message, LogFields fields) {
  if (!LogEnabled(level)) return;
  std::lock_guard<std::mutex> lock(g_mutex);
  Sink& sink = GlobalSink();
  const std::string line = FormatLogLine(sink.json, level, sink.process, message, fields);
  // The formatter writes the time stamp, in UTC; the line is plain data to it.
  static const char* const kLogfmt = "time=%Y-%m-%dT%H:%M:%S.%eZ %v";
  static const char* const kJson = "{\"time\":\"%Y-%m-%dT%H:%M:%S.%eZ\",%v";
  sink.logger->set_pattern(sink.json ? kJson : kLogfmt, spdlog::pattern_time_type::utc);
  sink.logger->log(spdlog::level::info, "{}", sink.json ? std::string_view(line).substr(1) : line);
}

}  // namespace hyserve::common
