#include "services/router/text.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "absl/synchronization/notification.h"
#include "tests/support/byte_tokenizer.h"

namespace hyserve::router {
namespace {

std::string Feed(TextStream* stream, std::string_view bytes, int* stop) {
  std::string text;
  *stop = -1;
  for (const char byte : bytes) {
    *stop = stream->Push(static_cast<uint8_t>(byte), &text);
    if (*stop >= 0) return text;
  }
  *stop = stream->Flush(&text);
  return text;
}

TEST(TextModel, TokenizesTextAndChat) {
  const auto model = test::MakeByteTextModel();
  const auto ids = model->TokenizeText("hi", 100);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, (std::vector<int32_t>{'h', 'i'}));
  EXPECT_EQ(model->TokenizeText("longer", 3)->size(), 4u);  // "too long", not all of it
  v1::ChatMessages chat;
  chat.add_messages()->set_content("a<|end|>");
  chat.mutable_messages(0)->set_role("user");
  const auto chat_ids = model->TokenizeChat(chat, 100);
  ASSERT_TRUE(chat_ids.ok()) << chat_ids.status();
  // The client's own "<|end|>" stays text; only the template's are special.
  std::vector<int32_t> expected = {test::kUserTokenId, 'a'};
  for (const char c : std::string("<|end|>")) expected.push_back(c);
  expected.push_back(test::kEndTokenId);
  expected.push_back(test::kReplyTokenId);
  EXPECT_EQ(*chat_ids, expected);
}

TEST(TextModel, AModelWithoutTokenizerTakesTokenIdsOnly) {
  const auto model = TextModel::Load("");
  ASSERT_TRUE(model.ok());
  EXPECT_EQ((*model)->TokenizeText("x", 9).status().code(), absl::StatusCode::kFailedPrecondition);
  const std::vector<std::string> stop = {"x"};
  EXPECT_FALSE(TextStream::Create(model->get(), stop, false, false).ok());
  auto stream = TextStream::Create(model->get(), {}, false, false);
  ASSERT_TRUE(stream.ok());
  int stop_index = 0;
  EXPECT_EQ(Feed(&*stream, "abc", &stop_index), "");
  EXPECT_EQ(stop_index, -1);
}

TEST(TextModel, ReportsABrokenTokenizerFile) {
  const std::string dir = testing::TempDir() + "/broken_tokenizer";
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/tokenizer.json") << "{";
  EXPECT_FALSE(TextModel::Load(dir).ok());
}

TEST(TextStream, StopStringsAndSpecialTokens) {
  const auto model = test::MakeByteTextModel();
  const std::vector<std::string> stops = {"END", "\n\n"};
  for (const bool include : {false, true}) {
    auto stream = TextStream::Create(model.get(), stops, include, false);
    int stop = -1;
    EXPECT_EQ(Feed(&*stream, "abc\nEND more", &stop), include ? "abc\nEND" : "abc\n");
    EXPECT_EQ(stop, 0);
  }
  for (const bool keep : {false, true}) {
    auto stream = TextStream::Create(model.get(), {}, false, keep);
    std::string text;
    stream->Push('a', &text);
    stream->Push(test::kEndTokenId, &text);
    EXPECT_EQ(text, keep ? "a<|end|>" : "a");
  }
}

TEST(TextStream, HeldBytesComeOutAtTheEnd) {
  const auto model = test::MakeByteTextModel();
  auto stream = TextStream::Create(model.get(), {}, false, false);
  std::string text;
  stream->Push(0xC3, &text);
  EXPECT_EQ(text, "");
  EXPECT_EQ(stream->Flush(&text), -1);
  EXPECT_EQ(text, "\xEF\xBF\xBD");
}

TEST(TextPool, RefusesWhenFullAndRunsAllThatItTook) {
  std::atomic<int> ran{0};
  {
    absl::Notification started, go;
    TextPool pool(1, 2);  // its end waits for what uses the rest
    ASSERT_TRUE(pool.Run([&] {
      started.Notify();
      go.WaitForNotification();
      ++ran;
    }));
    started.WaitForNotification();
    EXPECT_TRUE(pool.Run([&] { ++ran; }));
    EXPECT_TRUE(pool.Run([&] { ++ran; }));
    EXPECT_FALSE(pool.Run([&] { ++ran; }));
    go.Notify();
  }
  EXPECT_EQ(ran, 3);
}

}  // namespace
}  // namespace hyserve::router
