// Text at the router: prompts to token ids, token ids to text.
#ifndef HYSERVE_SERVICES_ROUTER_TEXT_H_
#define HYSERVE_SERVICES_ROUTER_TEXT_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/incremental_detokenizer.h"
#include "engine/tokenizer/stop_matcher.h"
#include "engine/tokenizer/tokenizer.h"
#include "hyserve/v1/inference.pb.h"

namespace hyserve::router {

// Tokenizer and chat template of the served model; either may be absent. Immutable, thread-safe.
class TextModel {
 public:
  // Reads tokenizer.json and tokenizer_config.json of a checkpoint directory where they exist. An
  // empty directory: a model without text.
  static absl::StatusOr<std::unique_ptr<TextModel>> Load(const std::string& directory);
  // For tests.
  TextModel(std::unique_ptr<tokenizer::Tokenizer> tokenizer,
            std::unique_ptr<tokenizer::ChatTemplate> chat_template);

  // Null if there is none.
  const tokenizer::Tokenizer* tokenizer() const { return tokenizer_.get(); }

  // Ids of a prompt of text, at most max_tokens + 1 (more means "too long").
  // FAILED_PRECONDITION: the model has no tokenizer, or no chat template.
  absl::StatusOr<std::vector<int32_t>> TokenizeText(std::string_view text, size_t max_tokens) const;
  absl::StatusOr<std::vector<int32_t>> TokenizeChat(const v1::ChatMessages& chat,
                                                    size_t max_tokens) const;

 private:
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  std::unique_ptr<tokenizer::ChatTemplate> chat_template_;
};

// The text of one stream. Not thread-safe. Pure: the same ids give the same text, however grouped.
class TextStream {
 public:
  // `model` must outlive the stream. INVALID_ARGUMENT: stop strings without a tokenizer.
  static absl::StatusOr<TextStream> Create(const TextModel* model,
                                           std::span<const std::string> stop_strings,
                                           bool include_stop, bool keep_special_tokens);

  // Appends to *text what `id` adds. Index of the stop string that was found, or -1.
  int Push(int32_t id, std::string* text);
  // The end of the stream without a stop string: what was held back. A stop string may still be
  // found.
  int Flush(std::string* text);

 private:
  TextStream() = default;
  int PushText(std::string delta, std::string* text);

  std::optional<tokenizer::IncrementalDetokenizer> detokenizer_;
  std::optional<tokenizer::StopMatcher> stop_matcher_;  // absent: no stop strings
};

// Runs long tokenizations away from the threads that serve streams. Thread-safe.
class TextPool {
 public:
  TextPool(int num_threads, int max_queue);
  ~TextPool();  // runs what is queued, then stops

  // False: the queue is full.
  bool Run(std::function<void()> work);

 private:
  void Loop();

  const size_t max_queue_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_TEXT_H_
