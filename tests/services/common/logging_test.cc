#include "services/common/logging.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace hyserve::common {
namespace {

TEST(Logging, LogfmtQuotesWhatNeedsIt) {
  EXPECT_EQ(
      FormatLogLine(false, LogLevel::kInfo, "router", "two words",
                    {{"plain", "x"}, {"empty", ""}, {"quote", "a\"b"}, {"n", 5}, {"ok", true}}),
      "level=info process=router msg=\"two words\" plain=x empty=\"\" quote=\"a\\\"b\" n=5 "
      "ok=true");
}

TEST(Logging, ALineCannotBeForged) {
  const std::string line = FormatLogLine(false, LogLevel::kWarning, "router", "m",
                                         {{"name", "x\nlevel=error msg=\"fake\""}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

TEST(Logging, JsonIsValidAndTyped) {
  const auto json = nlohmann::json::parse(
      FormatLogLine(true, LogLevel::kError, "p0", "line\n\x01",
                    {{"count", 3}, {"text", "3"}, {"status", absl::InternalError("x")}}));
  EXPECT_EQ(json["level"], "error");
  EXPECT_EQ(json["process"], "p0");
  EXPECT_EQ(json["msg"], "line\n\x01");
  EXPECT_EQ(json["count"], 3);
  EXPECT_EQ(json["text"], "3");
  EXPECT_EQ(json["status"], "INTERNAL: x");
}

TEST(Logging, LinesAreCut) {
  const std::string huge(1 << 20, 'x');
  for (const bool json : {false, true}) {
    const std::string line = FormatLogLine(json, LogLevel::kInfo, "p", huge,
                                           {{"a", huge}, {"b", huge}, {"c", huge}, {"d", huge}});
    EXPECT_LE(line.size(), kMaxLogLineBytes);
    EXPECT_NE(line.find("cut"), std::string::npos);
    if (json) {
      EXPECT_TRUE(nlohmann::json::accept(line));
    }
  }
}

TEST(Logging, GoesToStandardErrorAboveItsLevel) {
  testing::internal::CaptureStderr();
  InitLogging({.level = "warning", .format = "json"}, "test");
  LogInfo("not this");
  LogWarning("but this", {{"k", 1}});
  const std::string out = testing::internal::GetCapturedStderr();
  InitLogging({}, "test");
  const auto json = nlohmann::json::parse(out);  // exactly one line
  EXPECT_EQ(json["msg"], "but this");
  EXPECT_EQ(json["time"].get<std::string>().size(), std::string("2026-01-01T00:00:00.000Z").size());
}

}  // namespace
}  // namespace hyserve::common
