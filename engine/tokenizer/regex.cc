#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/tokenizer/regex.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include <pcre2.h>

#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/regex_dialect.h"

namespace hyserve::tokenizer {
namespace {

constexpr size_t kProbeBytes = 1024;
constexpr uint64_t kProbeStepsPerByte = 128;
constexpr uint64_t kStepsPerByte = 16;
constexpr uint64_t kStepsAtLeast = 4096;
constexpr uint32_t kHeapLimitKib = 32 * 1024;

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct CompileContextDeleter {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

}  // namespace

struct Regex::Scratch::State {
  std::unique_ptr<pcre2_match_data, MatchDataDeleter> data;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context;
};

Regex::Scratch::Scratch() : state_(std::make_unique<State>()) {
  state_->data.reset(pcre2_match_data_create(1, nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  if (state_->data == nullptr || state_->context == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(state_->context.get(), kHeapLimitKib);
}

Regex::Scratch::~Scratch() = default;

struct Regex::Code {
  std::unique_ptr<pcre2_code, CodeDeleter> code;
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::~Regex() = default;

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Compile(std::string_view pattern) {
  absl::StatusOr<std::string> translated = TranslateRegex(pattern);
  if (!translated.ok()) return translated.status();
  if (absl::Status status = Probe(*translated); !status.ok()) return status;
  return Build(*translated, 0);
}

absl::StatusOr<std::unique_ptr<const Regex>> Regex::CompileLiteral(std::string_view text) {
  if (text.empty()) return absl::InvalidArgumentError("the string is empty");
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("the string is not valid UTF-8");
  return Build(text, PCRE2_LITERAL);
}

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Build(std::string_view pattern,
                                                          uint32_t options) {
  std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(
      pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  if ((options & PCRE2_LITERAL) == 0) options |= PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_unique<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 options | PCRE2_UTF, &error, &offset, context.get()));
  if (code->code == nullptr) {
    PCRE2_UCHAR message[160];
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(
        StrCat("does not compile: ", reinterpret_cast<const char*>(message)));
  }
  uint32_t match_empty = 0;
  pcre2_pattern_info(code->code.get(), PCRE2_INFO_MATCHEMPTY, &match_empty);
  if (match_empty != 0) return absl::InvalidArgumentError("can match the empty string");
  // Without JIT (a hardened kernel may forbid it) the interpreter gives the same matches.
  pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<const Regex>(new Regex(std::move(code)));
}

int Regex::Match(std::string_view text, size_t begin, uint32_t options, Scratch* scratch) const {
  const uint64_t steps = kStepsAtLeast + kStepsPerByte * (text.size() - begin);
  Scratch::State& state = *scratch->state_;
  pcre2_set_match_limit(state.context.get(),
                        static_cast<uint32_t>(std::min<uint64_t>(
                            steps, std::numeric_limits<uint32_t>::max())));
  return pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                     begin, options | PCRE2_NO_UTF_CHECK, state.data.get(), state.context.get());
}

std::optional<ByteRange> Regex::Find(std::string_view text, size_t begin,
                                     Scratch* scratch) const {
  int result = Match(text, begin, 0, scratch);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
    result = Match(text, begin, PCRE2_NO_JIT, scratch);
  }
  if (result < 0) return std::nullopt;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch->state_->data.get());
  return ByteRange{offsets[0], offsets[1]};
}

// Splits runs of one kind of character, and of two in turn, some ended by another kind: what makes
// an expression try many ways to split one run. The work is counted by a callout at every item of
// the pattern; it must be linear in the text for the whole of it, failed starts included.
absl::Status Regex::Probe(std::string_view pattern) {
  constexpr std::string_view kUnits[] = {
      " ",    "\n",   "\t",   "a",  "A",  "1",  ".",  "'",         "_",  "\xC2\xA0",
      " \n",  "a ",   "aA",   "a1", "a.", "'s", " .", "\xCC\x81", "/\n",
      "\xE4\xB8\xAD", "\xD7\x90", "\xF0\x9F\x98\x80\xE2\x80\x8D"};
  // Without the compiler's shortcuts, so that what they hide is counted: skipped starts, and
  // possessive loops that scan a whole run in one step.
  auto regex = Build(
      pattern, PCRE2_AUTO_CALLOUT | PCRE2_NO_START_OPTIMIZE | PCRE2_NO_AUTO_POSSESS);
  if (!regex.ok()) return regex.status();
  Scratch scratch;
  uint64_t steps = 0;
  pcre2_set_callout(
      scratch.state_->context.get(),
      [](pcre2_callout_block*, void* count) {
        uint64_t& steps = *static_cast<uint64_t*>(count);
        return ++steps > kProbeStepsPerByte * kProbeBytes ? PCRE2_ERROR_CALLOUT : 0;
      },
      &steps);
  for (const std::string_view unit : kUnits) {
    for (const std::string_view tail : {"", "x", "!"}) {
      std::string text;
      while (text.size() < kProbeBytes) text.append(unit);
      text.append(tail);
      steps = 0;
      for (size_t begin = 0; begin < text.size();) {
        const int result = (*regex)->Match(text, begin, PCRE2_NO_JIT, &scratch);
        if (result == PCRE2_ERROR_NOMATCH) break;
        if (result < 0) {
          return absl::InvalidArgumentError("backtracks too much on a long run of characters");
        }
        begin = pcre2_get_ovector_pointer(scratch.state_->data.get())[1];
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace hyserve::tokenizer
