#include "services/router/text.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/strings.h"

namespace hyserve::router {
namespace {

constexpr size_t kMaxTokenizerConfigBytes = size_t{16} << 20;

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(StrCat(path, ": ", error.message()));
  if (size > kMaxTokenizerConfigBytes) {
    return absl::InvalidArgumentError(StrCat(path, ": too large"));
  }
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

}  // namespace

TextModel::TextModel(std::unique_ptr<tokenizer::Tokenizer> tokenizer,
                     std::unique_ptr<tokenizer::ChatTemplate> chat_template)
    : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)) {}

absl::StatusOr<std::unique_ptr<TextModel>> TextModel::Load(const std::string& directory) {
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;
  std::unique_ptr<tokenizer::ChatTemplate> chat_template;
  const std::string tokenizer_path = directory + "/tokenizer.json";
  if (!directory.empty() && std::filesystem::exists(tokenizer_path)) {
    auto loaded = tokenizer::Tokenizer::Load(tokenizer_path);
    if (!loaded.ok()) return loaded.status();
    tokenizer = *std::move(loaded);
    const std::string config_path = directory + "/tokenizer_config.json";
    if (std::filesystem::exists(config_path)) {
      const absl::StatusOr<std::string> json = ReadSmallFile(config_path);
      if (!json.ok()) return json.status();
      auto parsed = tokenizer::ChatTemplate::FromTokenizerConfig(*json, config_path);
      if (parsed.ok()) {
        chat_template = *std::move(parsed);
      } else if (!absl::IsNotFound(parsed.status())) {
        return parsed.status();
      }
    }
  }
  return std::make_unique<TextModel>(std::move(tokenizer), std::move(chat_template));
}

absl::StatusOr<std::vector<int32_t>> TextModel::TokenizeText(std::string_view text,
                                                             size_t max_tokens) const {
  if (tokenizer_ == nullptr) {
    return absl::FailedPreconditionError("text: the served model has no tokenizer; send token_ids");
  }
  tokenizer::EncodeOptions options;
  options.add_special_tokens = true;
  options.max_tokens = max_tokens;
  return tokenizer_->Encode(text, options);
}

absl::StatusOr<std::vector<int32_t>> TextModel::TokenizeChat(const v1::ChatMessages& chat,
                                                             size_t max_tokens) const {
  if (tokenizer_ == nullptr || chat_template_ == nullptr) {
    return absl::FailedPreconditionError("chat: the served model has no chat template");
  }
  std::vector<tokenizer::ChatMessage> messages;
  messages.reserve(chat.messages_size());
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  const auto rendered = chat_template_->RenderWithRanges(messages, /*add_generation_prompt=*/true);
  if (!rendered.ok()) return rendered.status();
  // The template writes the special tokens itself; a client must not.
  tokenizer::EncodeOptions options;
  options.max_tokens = max_tokens;
  options.literal_ranges = rendered->client_ranges;
  return tokenizer_->Encode(rendered->text, options);
}

absl::StatusOr<TextStream> TextStream::Create(const TextModel* model,
                                              std::span<const std::string> stop_strings,
                                              bool include_stop, bool keep_special_tokens) {
  TextStream stream;
  if (model->tokenizer() == nullptr) {
    if (!stop_strings.empty()) {
      return absl::InvalidArgumentError("stopping.stop: the served model has no tokenizer");
    }
    return stream;
  }
  stream.detokenizer_.emplace(model->tokenizer(), !keep_special_tokens);
  if (!stop_strings.empty()) {
    auto matcher = tokenizer::StopMatcher::Create(stop_strings, include_stop);
    if (!matcher.ok()) return matcher.status();
    stream.stop_matcher_ = *std::move(matcher);
  }
  return stream;
}

int TextStream::PushText(std::string delta, std::string* text) {
  if (!stop_matcher_.has_value()) {
    text->append(delta);
    return -1;
  }
  tokenizer::StopMatcher::Output output = stop_matcher_->Push(delta);
  text->append(output.text);
  return output.stop_index;
}

int TextStream::Push(int32_t id, std::string* text) {
  return detokenizer_.has_value() ? PushText(detokenizer_->Push(id), text) : -1;
}

int TextStream::Flush(std::string* text) {
  if (!detokenizer_.has_value()) return -1;
  const int stop_index = PushText(detokenizer_->Flush(), text);
  if (stop_index >= 0 || !stop_matcher_.has_value()) return stop_index;
  tokenizer::StopMatcher::Output output = stop_matcher_->Flush();
  text->append(output.text);
  return output.stop_index;
}

TextPool::TextPool(int num_threads, int max_queue) : max_queue_(max_queue) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Loop(); });
}

TextPool::~TextPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool TextPool::Run(std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  if (stopping_ || queue_.size() >= max_queue_) return false;
  queue_.push_back(std::move(work));
  return true;
}

void TextPool::Loop() {
  const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  };
  while (true) {
    std::function<void()> work;
    {
      absl::MutexLock lock(&mutex_, absl::Condition(&wake));
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

}  // namespace hyserve::router
