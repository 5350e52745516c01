// Stop strings over streamed text.
//
// Which stop string wins is a property of the text, not of how it was cut into deltas: the one
// whose last byte comes first; of several that end there, the longest. Text that could still be
// the beginning of a stop string is held back, and nothing else is.
// Method: Aho & Corasick, "Efficient string matching" (1975); amortised O(1) per byte, memory
// proportional to the stop strings.
#ifndef HYSERVE_ENGINE_TOKENIZER_STOP_MATCHER_H_
#define HYSERVE_ENGINE_TOKENIZER_STOP_MATCHER_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hyserve::tokenizer {

inline constexpr size_t kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;

// State of one stream. Not thread-safe. Pure: the same text always gives the same output.
class StopMatcher {
 public:
  struct Output {
    std::string text;     // what may be sent now
    int stop_index = -1;  // index of the stop string that was found, or -1
    bool stopped() const { return stop_index >= 0; }
  };

  // InvalidArgument if there are more than kMaxStopStrings, or one is empty, longer than
  // kMaxStopStringBytes or not valid UTF-8. No stop strings at all: everything passes at once.
  // A string given twice counts as its first.
  static absl::StatusOr<StopMatcher> Create(std::span<const std::string> stop_strings,
                                            bool include_stop_string);

  // Adds text. Once a stop string was found, its Output is the last with text: later calls return
  // nothing, with the same stop_index.
  Output Push(std::string_view delta);

  // The end of the stream: what was held back.
  Output Flush();

  size_t held_bytes() const { return held_.size(); }

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t fail = 0;
    int32_t depth = 0;
    int32_t stop = -1;  // longest stop string that ends here, or -1
    uint8_t byte = 0;
  };

  StopMatcher() = default;
  int32_t Child(int32_t node, uint8_t byte) const;
  int32_t Advance(int32_t node, uint8_t byte) const;
  void LinkFailures();

  std::vector<Node> nodes_;
  std::array<int32_t, 256> root_children_{};
  std::vector<int32_t> stop_bytes_;  // length of each stop string
  bool include_stop_string_ = false;
  int32_t node_ = 0;
  std::string held_;
  int stop_index_ = -1;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_STOP_MATCHER_H_
