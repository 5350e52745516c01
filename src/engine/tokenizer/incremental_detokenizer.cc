#include "engine/tokenizer/incremental_detokenizer.h"

#include <string_view>
#include <utility>

#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

std::string IncrementalDetokenizer::Push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return "";
  held_.append(tokenizer_->TokenBytes(id));
  const size_t complete = CompleteUtf8Prefix(held_);
  std::string delta;
  AppendLossyUtf8(std::string_view(held_).substr(0, complete), &delta);
  held_.erase(0, complete);
  return delta;
}

std::string IncrementalDetokenizer::Flush() {
  std::string delta;
  AppendLossyUtf8(held_, &delta);
  held_.clear();
  return delta;
}

}  // namespace hyserve::tokenizer
