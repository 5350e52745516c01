#include "engine/tokenizer/regex_dialect.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {
namespace {

constexpr size_t kMaxPatternBytes = 8192;
constexpr uint32_t kMaxRepeat = 1000;

// White_Space as class members. PCRE2's own \s also holds U+180E.
constexpr std::string_view kSpaceMembers =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
// Its complement, for \S inside a class.
constexpr std::string_view kNotSpaceMembers =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

constexpr std::array<std::string_view, 37> kCategories = {
    "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc", "Sk", "Sm",
    "So", "Z",  "Zl", "Zp", "Zs", "C",  "Cc", "Cf", "Cn", "Co", "Cs"};
constexpr std::array<std::string_view, 12> kScripts = {
    "Arabic", "Bengali", "Cyrillic",   "Devanagari", "Greek", "Han",
    "Hangul", "Hebrew",  "Hiragana",   "Katakana",   "Latin", "Thai"};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (in_.empty()) return Refuse("the pattern is empty");
    if (in_.size() > kMaxPatternBytes) return Refuse("the pattern is longer than 8192 bytes");
    if (!IsValidUtf8(in_)) return Refuse("the pattern is not valid UTF-8");
    groups_.push_back({});
    while (pos_ < in_.size()) {
      if (absl::Status status = Item(); !status.ok()) return status;
    }
    if (groups_.size() != 1) return Refuse("missing ')'");
    return out_;
  }

 private:
  struct Group {
    bool has_unbounded = false;  // a *, + or {m,} inside that can give back what it matched
    bool atomic = false;         // (?>...) and look-ahead: nothing inside is retried
    bool look_ahead = false;
  };
  enum class Last { kNothing, kAtom, kGroup, kLookAhead };

  absl::Status Refuse(std::string_view reason) const {
    return absl::InvalidArgumentError(StrCat("at byte ", pos_, ": ", reason));
  }
  char Peek(size_t ahead = 0) const {
    return pos_ + ahead < in_.size() ? in_[pos_ + ahead] : '\0';
  }
  void CopyScalar() {
    const Utf8Scalar scalar = DecodeUtf8(in_, pos_);
    out_.append(in_.substr(pos_, scalar.length_bytes));
    pos_ += scalar.length_bytes;
  }

  absl::Status Item() {
    switch (Peek()) {
      case '(':
        return OpenGroup();
      case ')':
        return CloseGroup();
      case '[':
        last_ = Last::kAtom;
        return Class();
      case '\\':
        last_ = Last::kAtom;
        return Escape(/*in_class=*/false);
      case '*':
      case '+':
      case '?':
      case '{':
        return Quantifier();
      case '|':
        last_ = Last::kNothing;
        out_.push_back('|');
        ++pos_;
        return absl::OkStatus();
      case '^':
      case '$':
      case '.':
        return Refuse(StrCat("'", in_.substr(pos_, 1), "' is not supported"));
      case '}':
      case ']':
        out_.push_back('\\');
        break;
      case '\0':
        return Refuse("a NUL byte is not supported");
      default:
        break;
    }
    last_ = Last::kAtom;
    CopyScalar();
    return absl::OkStatus();
  }

  absl::Status OpenGroup() {
    if (groups_.size() > 32) return Refuse("groups are nested more than 32 deep");
    Group group;
    std::string_view rest = in_.substr(pos_);
    std::string_view open = "(";
    if (Peek(1) == '?') {
      open = "";
      for (std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?i:"}) {
        if (rest.starts_with(known)) open = known;
      }
      if (open.empty()) return Refuse("this kind of group is not supported");
    } else if (Peek(1) == '*') {
      return Refuse("a group may not start with '*'");
    }
    group.look_ahead = open == "(?=" || open == "(?!";
    group.atomic = group.look_ahead || open == "(?>";
    groups_.push_back(group);
    out_.append(open == "(" ? "(?:" : open);
    pos_ += open.size();
    last_ = Last::kNothing;
    return absl::OkStatus();
  }

  absl::Status CloseGroup() {
    if (groups_.size() == 1) return Refuse("')' without '('");
    closed_ = groups_.back();
    groups_.pop_back();
    if (!closed_.atomic && closed_.has_unbounded) groups_.back().has_unbounded = true;
    last_ = closed_.look_ahead ? Last::kLookAhead : Last::kGroup;
    out_.push_back(')');
    ++pos_;
    return absl::OkStatus();
  }

  absl::Status Quantifier() {
    if (last_ == Last::kNothing) return Refuse("a quantifier without anything to repeat");
    if (last_ == Last::kLookAhead) return Refuse("a quantifier after a look-ahead");
    const size_t begin = pos_;
    const bool braces = Peek() == '{';
    bool unbounded = Peek() == '*' || Peek() == '+';
    bool repeats = unbounded;
    if (braces) {
      const absl::Status status = Braces(&unbounded);
      if (!status.ok()) return status;
      repeats = true;
    } else {
      ++pos_;
    }
    out_.append(in_.substr(begin, pos_ - begin));
    if (repeats && last_ == Last::kGroup && closed_.has_unbounded && !closed_.atomic) {
      return Refuse("a repeated group contains an unbounded quantifier: it may backtrack without "
                    "bound");
    }
    if (unbounded) groups_.back().has_unbounded = true;
    if (Peek() == '?' || (Peek() == '+' && !braces)) {
      out_.push_back(Peek());
      ++pos_;
    }
    if (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{') {
      return Refuse("a quantifier after a quantifier");
    }
    last_ = Last::kNothing;
    return absl::OkStatus();
  }

  // Moves past {m}, {m,} or {m,n}.
  absl::Status Braces(bool* unbounded) {
    ++pos_;
    uint32_t low = 0;
    uint32_t high = 0;
    if (!Number(&low)) return Refuse("'{' must be followed by a number of at most 1000");
    high = low;
    if (Peek() == ',') {
      ++pos_;
      if (Peek() == '}') {
        *unbounded = true;
      } else if (!Number(&high) || high < low) {
        return Refuse("the bounds of '{m,n}' are wrong");
      }
    }
    if (Peek() != '}') return Refuse("missing '}'");
    ++pos_;
    return absl::OkStatus();
  }

  bool Number(uint32_t* value) {
    if (!std::isdigit(static_cast<unsigned char>(Peek()))) return false;
    *value = 0;
    while (std::isdigit(static_cast<unsigned char>(Peek()))) {
      *value = *value * 10 + static_cast<uint32_t>(Peek() - '0');
      if (*value > kMaxRepeat) return false;
      ++pos_;
    }
    return true;
  }

  absl::Status Class() {
    out_.push_back('[');
    ++pos_;
    if (Peek() == '^') {
      out_.push_back('^');
      ++pos_;
    }
    if (Peek() == ']') return Refuse("an empty character class");
    while (pos_ < in_.size() && Peek() != ']') {
      if (Peek() == '[') return Refuse("nested character classes are not supported");
      if (Peek() == '&' && Peek(1) == '&') return Refuse("'&&' in a class is not supported");
      if (Peek() == '\\') {
        if (absl::Status status = Escape(/*in_class=*/true); !status.ok()) return status;
      } else if (Peek() == '^') {
        out_.append("\\^");
        ++pos_;
      } else if (Peek() == '\0') {
        return Refuse("a NUL byte is not supported");
      } else {
        CopyScalar();
      }
    }
    if (pos_ >= in_.size()) return Refuse("missing ']'");
    out_.push_back(']');
    ++pos_;
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    const char c = Peek(1);
    if (c == 'p' || c == 'P') return Property();
    switch (c) {
      case 's':
        out_.append(in_class ? std::string(kSpaceMembers) : StrCat("[", kSpaceMembers, "]"));
        break;
      case 'S':
        out_.append(in_class ? std::string(kNotSpaceMembers)
                             : StrCat("[^", kSpaceMembers, "]"));
        break;
      case 'd':
        out_.append("\\p{Nd}");
        break;
      case 'D':
        out_.append("\\P{Nd}");
        break;
      case 'v':  // Oniguruma: vertical tab; PCRE2: any vertical white space
        out_.append("\\x{b}");
        break;
      case 'r':
      case 'n':
      case 't':
      case 'f':
        out_.push_back('\\');
        out_.push_back(c);
        break;
      default:
        if (c == '\0' || !std::ispunct(static_cast<unsigned char>(c))) {
          return Refuse(StrCat("the escape '", in_.substr(pos_, 2), "' is not supported"));
        }
        out_.push_back('\\');
        out_.push_back(c);
    }
    pos_ += 2;
    return absl::OkStatus();
  }

  absl::Status Property() {
    bool negated = Peek(1) == 'P';
    if (Peek(2) != '{') return Refuse("\\p must be followed by '{'");
    size_t begin = pos_ + 3;
    const size_t end = in_.find('}', begin);
    if (end == std::string_view::npos) return Refuse("missing '}' after \\p");
    if (begin < end && in_[begin] == '^') {
      negated = !negated;
      ++begin;
    }
    const std::string_view name = in_.substr(begin, end - begin);
    std::string_view prefix;
    if (std::find(kCategories.begin(), kCategories.end(), name) == kCategories.end()) {
      if (std::find(kScripts.begin(), kScripts.end(), name) == kScripts.end()) {
        return Refuse(StrCat("the property \\p{", name, "} is not supported"));
      }
      prefix = "sc:";  // PCRE2's default is script extensions, Oniguruma's the script
    }
    out_ += StrCat(negated ? "\\P{" : "\\p{", prefix, name, "}");
    pos_ = end + 1;
    return absl::OkStatus();
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
  std::vector<Group> groups_;
  Group closed_;  // the group that ended just before, when last_ == kGroup
  Last last_ = Last::kNothing;
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace hyserve::tokenizer
