// One compiled pre-tokenizer pattern over PCRE2 (UTF, Unicode properties, JIT where available).
#ifndef HYSERVE_ENGINE_TOKENIZER_REGEX_H_
#define HYSERVE_ENGINE_TOKENIZER_REGEX_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {

// Immutable and thread-safe. A Regex::Scratch belongs to one thread at a time.
class Regex {
 public:
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
  };

  // Compiles a pattern of the dialect in regex_dialect.h. InvalidArgument when the pattern is not
  // in the dialect, does not compile, can match the empty string, or needs more than linear work
  // to split long runs of characters (it is tried on some).
  static absl::StatusOr<std::unique_ptr<const Regex>> Compile(std::string_view pattern);
  // A pattern that matches exactly the bytes of `text`. InvalidArgument when it is empty.
  static absl::StatusOr<std::unique_ptr<const Regex>> CompileLiteral(std::string_view text);

  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // The first match at or after `begin`; never empty. nullopt when there is none, or when the
  // match was given up: one call does at most 16 backtracking steps per byte of the text plus a
  // constant, so no input can hold a thread. REQUIRES: `text` is valid UTF-8.
  std::optional<ByteRange> Find(std::string_view text, size_t begin, Scratch* scratch) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  static absl::StatusOr<std::unique_ptr<const Regex>> Build(std::string_view pattern,
                                                            uint32_t options);
  // InvalidArgument if splitting the probe texts takes more than linear work.
  static absl::Status Probe(std::string_view pattern);
  // Returns the PCRE2 result code.
  int Match(std::string_view text, size_t begin, uint32_t options, Scratch* scratch) const;

  std::unique_ptr<Code> code_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_REGEX_H_
