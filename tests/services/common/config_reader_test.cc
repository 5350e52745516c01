#include "services/common/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace hyserve::common {
namespace {

using ::testing::HasSubstr;

struct Settings {
  std::string text = "default";
  bool flag = false;
  int64_t number = 5;
  double real = 1;
  int64_t size_bytes = 0;
  absl::Duration time = absl::ZeroDuration();
  std::string word = "a";
  std::string address;
  std::vector<std::string> list;
  int64_t inner = 0;
  std::vector<int64_t> items;
};

absl::Status Read(std::string_view yaml, Settings* settings) {
  return ReadConfigText(yaml, "c.yaml", [settings](ConfigTable& table) {
    table.String("text", &settings->text);
    table.Bool("flag", &settings->flag);
    table.Int("number", &settings->number, 0, 100);
    table.Double("real", &settings->real, -10, 10);
    table.Bytes("size", &settings->size_bytes, 0, int64_t{1} << 40);
    table.Duration("time", &settings->time, absl::ZeroDuration(), absl::Hours(1));
    table.Enum("word", &settings->word, {"a", "b"});
    table.Address("address", &settings->address);
    table.StringList("list", &settings->list, 3);
    table.Table("section", [&](ConfigTable& section) {
      section.Int("inner", &settings->inner, 0, 9);
    });
    table.List("items", 3, [&](ConfigTable& item) {
      int64_t value = 0;
      item.Int("value", &value, 0, 9);
      settings->items.push_back(value);
    });
  });
}

// The message of the only problem, or of all of them.
std::string Problem(std::string_view yaml) {
  Settings settings;
  const absl::Status status = Read(yaml, &settings);
  EXPECT_FALSE(status.ok()) << yaml;
  return std::string(status.message());
}

TEST(ConfigReader, ReadsEveryKindOfValue) {
  Settings settings;
  const absl::Status status = Read(
      "text: hello # comment\nflag: true\nnumber: 42\nreal: -1.5e0\nsize: 64MiB\ntime: 500ms\n"
      "word: b\naddress: 127.0.0.1:80\nlist: [x, y]\nsection:\n  inner: 3\n"
      "items:\n  - value: 1\n  - {value: 2}\n",
      &settings);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(settings.text, "hello");
  EXPECT_TRUE(settings.flag);
  EXPECT_EQ(settings.number, 42);
  EXPECT_EQ(settings.real, -1.5);
  EXPECT_EQ(settings.size_bytes, int64_t{64} << 20);
  EXPECT_EQ(settings.time, absl::Milliseconds(500));
  EXPECT_EQ(settings.word, "b");
  EXPECT_EQ(settings.address, "127.0.0.1:80");
  EXPECT_EQ(settings.list, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(settings.inner, 3);
  EXPECT_EQ(settings.items, (std::vector<int64_t>{1, 2}));
}

TEST(ConfigReader, AbsentKeysKeepTheirDefaultsAndEmptySectionsAreFine) {
  Settings settings;
  ASSERT_TRUE(Read("section:\n", &settings).ok());
  EXPECT_EQ(settings.text, "default");
  EXPECT_EQ(settings.number, 5);
}

TEST(ConfigReader, NamesThePlaceOfAProblem) {
  EXPECT_EQ(Problem("text: x\nsection:\n  inner: 99\n"),
            "c.yaml:3:10: section.inner: must be in [0, 9]; got 99");
  EXPECT_EQ(Problem("items:\n  - value: 1\n  - value: x\n"),
            "c.yaml:3:12: items[1].value: must be a whole number (decimal, no leading zeros); "
            "got \"x\"");
}

TEST(ConfigReader, ReportsAllProblemsInTheOrderOfTheFile) {
  EXPECT_EQ(Problem("number: 1000\nflag: yes\nbogus: 1\n"),
            "c.yaml:1:9: number: must be in [0, 100]; got 1000\n"
            "c.yaml:2:7: flag: must be true or false; got \"yes\"\n"
            "c.yaml:3:1: bogus: unknown key");
}

TEST(ConfigReader, SuggestsTheNearestKey) {
  EXPECT_THAT(Problem("numbr: 1\n"), HasSubstr("numbr: unknown key; did you mean \"number\"?"));
  EXPECT_THAT(Problem("section:\n  iner: 1\n"), HasSubstr("did you mean \"inner\"?"));
}

TEST(ConfigReader, GuessesNothing) {
  for (const char* const bad : {"010", "0x10", "1_000", "+5", "5.0", "1e2", "\"5\"", "''", "~",
                                "[1]", "9223372036854775808", "0b1", " "}) {
    EXPECT_THAT(Problem(std::string("number: ") + bad + "\n"), HasSubstr("number: must be")) << bad;
  }
  for (const char* const bad : {"yes", "no", "on", "off", "True", "TRUE", "1", "\"true\"", "y"}) {
    EXPECT_THAT(Problem(std::string("flag: ") + bad + "\n"),
                HasSubstr("flag: must be true or false"));
  }
  for (const char* const bad : {".nan", ".inf", "-.inf", "nan", "1e999", "01.5", ".5", "0x1p3"}) {
    EXPECT_THAT(Problem(std::string("real: ") + bad + "\n"), HasSubstr("real: must be")) << bad;
  }
  for (const char* const bad :
       {"64", "64M", "64MB", "64 MiB", "-1MiB", "1.5B", "MiB", "9999999TiB"}) {
    EXPECT_THAT(Problem(std::string("size: ") + bad + "\n"), HasSubstr("size: must be")) << bad;
  }
  for (const char* const bad : {"500", "5 s", "5sec", "-1s", "ms", "2h", "1d"}) {
    EXPECT_THAT(Problem(std::string("time: ") + bad + "\n"), HasSubstr("time: must be")) << bad;
  }
  for (const char* const bad :
       {"localhost", ":80", "a:b", "a:65536", "a:-1", "http://a:80", "a:080"}) {
    EXPECT_THAT(Problem(std::string("address: ") + bad + "\n"), HasSubstr("address: must be"))
        << bad;
  }
  EXPECT_THAT(Problem("word: c\n"), HasSubstr("word: must be one of a, b; got \"c\""));
}

TEST(ConfigReader, RefusesWhatHidesMeaning) {
  EXPECT_EQ(Problem("number: 1\nnumber: 2\n"), "c.yaml:2:1: number: duplicate key");
  EXPECT_THAT(Problem("section: {inner: 1, inner: 2}\n"),
              HasSubstr("section.inner: duplicate key"));
  EXPECT_THAT(Problem("text: &a x\nword: *a\n"), HasSubstr("anchors are not allowed"));
  EXPECT_THAT(Problem("text: &a x\nword: *a\n"), HasSubstr("aliases are not allowed"));
  EXPECT_THAT(Problem("text: !!str 5\n"), HasSubstr("tags are not allowed"));
  EXPECT_THAT(Problem("text: x\n---\ntext: y\n"), HasSubstr("a second document is not allowed"));
  EXPECT_THAT(Problem("\xEF\xBB\xBFtext: x\n"), HasSubstr("byte order mark"));
  EXPECT_THAT(Problem("section:\n\tinner: 1\n"), HasSubstr("c.yaml:2:1: tab in the indentation"));
  EXPECT_THAT(Problem("text: \xFF\n"), HasSubstr("c.yaml:1:7: is not valid UTF-8"));
  EXPECT_THAT(Problem("text: \xED\xA0\x80\n"), HasSubstr("is not valid UTF-8"));
  EXPECT_THAT(Problem("[a]: 1\n"), HasSubstr("keys must be plain words"));
  EXPECT_EQ(Problem("text: \"a\n"), "c.yaml:1:7: text: the closing quote is missing");
  EXPECT_THAT(Problem(""), HasSubstr("is empty"));
  EXPECT_THAT(Problem("- a\n"), HasSubstr("must be sections"));
}

TEST(ConfigReader, WrongShapesAreNamed) {
  EXPECT_THAT(Problem("section: 5\n"), HasSubstr("section: must be a section"));
  EXPECT_THAT(Problem("items: 5\n"), HasSubstr("items: must be a list"));
  EXPECT_THAT(Problem("items: [5]\n"), HasSubstr("items[0]: must be a section"));
  EXPECT_THAT(Problem("text: [a]\n"), HasSubstr("text: must be a text"));
  EXPECT_THAT(Problem("list: [a, b, c, d]\n"), HasSubstr("list: has more than 3 items"));
  EXPECT_THAT(Problem("list: [a, {b: c}]\n"), HasSubstr("list[1]: must be a text"));
}

TEST(ConfigReader, IsBoundedInDepthAndSize) {
  std::string deep = "text: ";
  for (int i = 0; i < 10'000; ++i) deep += "[";
  EXPECT_THAT(Problem(deep), HasSubstr("nested deeper than 32"));
  EXPECT_THAT(Problem(std::string(kMaxConfigFileBytes + 1, '#')), HasSubstr("larger than 1MiB"));
}

TEST(ConfigReader, ValuesInMessagesAreCutAndEscaped) {
  const std::string message = Problem("word: \"" + std::string(200, 'x') + "\"\n");
  EXPECT_LT(message.size(), 200u);
  EXPECT_THAT(Problem("word: \"a\\x01b\"\n"), HasSubstr("got \"a?b\""));
}

TEST(ConfigReader, FilesThatCannotBeReadAreNamed) {
  const auto nothing = [](ConfigTable&) {};
  EXPECT_EQ(ReadConfigFile("/nowhere/c.yaml", nothing).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadConfigFile("/", nothing).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hyserve::common
