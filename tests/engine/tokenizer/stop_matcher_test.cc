// Stop strings: the same result for every cutting of the text, and no byte held or sent wrongly.
#include "engine/tokenizer/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace hyserve::tokenizer {
namespace {

using Strings = std::vector<std::string>;

StopMatcher Make(const Strings& stops, bool include = false) {
  auto matcher = StopMatcher::Create(stops, include);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

struct Expected {
  std::string text;
  int index = -1;
};

// The definition: the first end of any stop string; of several there, the longest; of equal
// strings, the first.
Expected ByDefinition(const Strings& stops, bool include, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      const std::string& stop = stops[i];
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0 &&
          (best < 0 || stop.size() > stops[best].size())) {
        best = static_cast<int>(i);
      }
    }
    if (best >= 0) return {text.substr(0, include ? end : end - stops[best].size()), best};
  }
  return {text, -1};
}

// Longest end of `text` that is the beginning of a stop string.
size_t LongestPossibleBeginning(const Strings& stops, const std::string& text) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t size = std::min(stop.size() - 1, text.size()); size > longest; --size) {
      if (text.compare(text.size() - size, size, stop, 0, size) == 0) longest = size;
    }
  }
  return longest;
}

TEST(StopMatcherTest, AgreesWithTheDefinitionForEveryCutting) {
  std::mt19937 random(21);
  const auto word = [&](size_t max) {
    std::string text(1 + random() % max, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    Strings stops(1 + random() % 4);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(30);
    const bool include = round % 2 == 0;
    const Expected expected = ByDefinition(stops, include, text);
    StopMatcher matcher = Make(stops, include);
    std::string sent;
    int index = -1;
    size_t fed = 0;
    while (fed < text.size()) {
      const size_t size = std::min<size_t>(random() % 5, text.size() - fed);
      const StopMatcher::Output output = matcher.Push(text.substr(fed, size));
      fed += size;
      sent += output.text;
      if (output.stopped()) {
        index = output.stop_index;
        break;
      }
      ASSERT_EQ(matcher.held_bytes(), LongestPossibleBeginning(stops, text.substr(0, fed)));
      ASSERT_EQ(sent.size() + matcher.held_bytes(), fed);
    }
    sent += matcher.Flush().text;
    ASSERT_EQ(sent, expected.text) << text;
    ASSERT_EQ(index, expected.index) << text;
  }
}

TEST(StopMatcherTest, HoldsBackUntilTheBeginningFails) {
  StopMatcher matcher = Make({"</end>"});
  EXPECT_EQ(matcher.Push("a</e").text, "a");
  EXPECT_EQ(matcher.held_bytes(), 3u);
  EXPECT_EQ(matcher.Push("x").text, "</ex");
  EXPECT_EQ(matcher.Push("</en").text, "");
  EXPECT_EQ(matcher.Flush().text, "</en");
}

TEST(StopMatcherTest, AfterAStopNothingMoreIsSent) {
  StopMatcher matcher = Make({"STOP"});
  const StopMatcher::Output found = matcher.Push("before STOP after");
  EXPECT_EQ(found.text, "before ");
  EXPECT_EQ(found.stop_index, 0);
  const StopMatcher::Output later = matcher.Push("more");
  EXPECT_EQ(later.text, "");
  EXPECT_TRUE(later.stopped());
  EXPECT_EQ(matcher.Flush().text, "");
}

TEST(StopMatcherTest, OutputIsCutBetweenScalars) {
  StopMatcher matcher = Make({"\u00E9\u00E8"});  // C3 A9 C3 A8
  EXPECT_EQ(matcher.Push("x\u00E9").text, "x");
  EXPECT_EQ(matcher.Push("\u00EA").text, "\u00E9\u00EA");
  EXPECT_EQ(matcher.Push("\u00E9\u00E8").stop_index, 0);
}

TEST(StopMatcherTest, WithoutStopStringsEverythingPasses) {
  StopMatcher matcher = Make({});
  EXPECT_EQ(matcher.Push("text").text, "text");
  EXPECT_EQ(matcher.held_bytes(), 0u);
}

TEST(StopMatcherTest, WorstCasesOfTheLimitsPass) {
  Strings stops(kMaxStopStrings, std::string(kMaxStopStringBytes - 1, 'a'));
  for (size_t i = 0; i < stops.size(); ++i) stops[i] += static_cast<char>('b' + i);
  StopMatcher matcher = Make(stops);
  size_t sent = 0;
  for (int i = 0; i < 2000; ++i) sent += matcher.Push(std::string(100, 'a')).text.size();
  EXPECT_EQ(sent, 200'000 - (kMaxStopStringBytes - 1));
  EXPECT_EQ(matcher.Push("q").stop_index, 'q' - 'b');
}

TEST(StopMatcherTest, RefusesWhatIsOutOfBounds) {
  const auto message = [](const Strings& stops) {
    return std::string(StopMatcher::Create(stops, false).status().message());
  };
  EXPECT_EQ(message(Strings(17, "x")), "stop: 17 strings, more than 16");
  EXPECT_EQ(message({"a", ""}), "stop[1]: is empty");
  EXPECT_EQ(message({std::string(1025, 'x')}), "stop[0]: has 1025 bytes, more than 1024");
  EXPECT_EQ(message({"\xFF"}), "stop[0]: is not valid UTF-8");
}

}  // namespace
}  // namespace hyserve::tokenizer
