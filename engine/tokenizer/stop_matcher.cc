#include "engine/tokenizer/stop_matcher.h"

#include <utility>

#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

absl::StatusOr<StopMatcher> StopMatcher::Create(std::span<const std::string> stop_strings,
                                                bool include_stop_string) {
  if (stop_strings.size() > kMaxStopStrings) {
    return absl::InvalidArgumentError(StrCat("stop: ", stop_strings.size(),
                                             " strings, more than ", kMaxStopStrings));
  }
  StopMatcher matcher;
  matcher.include_stop_string_ = include_stop_string;
  matcher.nodes_.emplace_back();
  matcher.root_children_.fill(-1);
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    const std::string& text = stop_strings[i];
    if (text.empty()) return absl::InvalidArgumentError(StrCat("stop[", i, "]: is empty"));
    if (text.size() > kMaxStopStringBytes) {
      return absl::InvalidArgumentError(StrCat("stop[", i, "]: has ", text.size(),
                                               " bytes, more than ", kMaxStopStringBytes));
    }
    if (!IsValidUtf8(text)) {
      return absl::InvalidArgumentError(StrCat("stop[", i, "]: is not valid UTF-8"));
    }
    int32_t node = 0;
    for (const char c : text) {
      const uint8_t byte = static_cast<uint8_t>(c);
      int32_t child = matcher.Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(matcher.nodes_.size());
        Node added;
        added.byte = byte;
        added.depth = matcher.nodes_[node].depth + 1;
        added.next_sibling = matcher.nodes_[node].first_child;
        matcher.nodes_.push_back(added);
        matcher.nodes_[node].first_child = child;
        if (node == 0) matcher.root_children_[byte] = child;
      }
      node = child;
    }
    if (matcher.nodes_[node].stop < 0) matcher.nodes_[node].stop = static_cast<int32_t>(i);
    matcher.stop_bytes_.push_back(static_cast<int32_t>(text.size()));
  }
  matcher.LinkFailures();
  return matcher;
}

int32_t StopMatcher::Child(int32_t node, uint8_t byte) const {
  if (node == 0) return root_children_[byte];
  int32_t child = nodes_[node].first_child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
  return child;
}

int32_t StopMatcher::Advance(int32_t node, uint8_t byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

void StopMatcher::LinkFailures() {
  std::vector<int32_t> order = {0};  // breadth first
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t node = order[i];
    for (int32_t child = nodes_[node].first_child; child >= 0;
         child = nodes_[child].next_sibling) {
      nodes_[child].fail = node == 0 ? 0 : Advance(nodes_[node].fail, nodes_[child].byte);
      // The node's own stop string is longer than any that ends at its failure node.
      if (nodes_[child].stop < 0) nodes_[child].stop = nodes_[nodes_[child].fail].stop;
      order.push_back(child);
    }
  }
}

StopMatcher::Output StopMatcher::Push(std::string_view delta) {
  Output output;
  output.stop_index = stop_index_;
  if (stop_index_ >= 0) return output;
  for (size_t i = 0; i < delta.size(); ++i) {
    node_ = Advance(node_, static_cast<uint8_t>(delta[i]));
    const int32_t stop = nodes_[node_].stop;
    if (stop < 0) continue;
    stop_index_ = stop;
    output.stop_index = stop;
    output.text = std::exchange(held_, "");
    output.text.append(delta.substr(0, i + 1));
    if (!include_stop_string_) {
      output.text.resize(output.text.size() - static_cast<size_t>(stop_bytes_[stop]));
    }
    return output;
  }
  // What can still become a stop string is as long as the automaton is deep.
  held_.append(delta);
  const size_t keep = static_cast<size_t>(nodes_[node_].depth);
  output.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return output;
}

StopMatcher::Output StopMatcher::Flush() {
  Output output;
  output.stop_index = stop_index_;
  output.text = std::exchange(held_, "");
  node_ = 0;
  return output;
}

}  // namespace hyserve::tokenizer
