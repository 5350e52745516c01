#include "engine/tokenizer/chat_template_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "base/strings.h"
#include "engine/tokenizer/chat_template_value.h"
#include "engine/tokenizer/strict_json.h"
#include "engine/tokenizer/utf8.h"

namespace hyserve::tokenizer {
namespace {

using Kind = TemplateToken::Kind;

// "\r\n" and "\r" become "\n"; one newline at the very end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), in_(source_) {}

  absl::StatusOr<std::vector<TemplateToken>> Run() {
    while (pos_ < in_.size()) {
      if (absl::Status status = TextAndTag(); !status.ok()) return status;
    }
    Emit(Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  bool At(std::string_view what) const { return in_.substr(pos_).starts_with(what); }
  char Peek(size_t ahead = 0) const {
    return pos_ + ahead < in_.size() ? in_[pos_ + ahead] : '\0';
  }
  int LineAt(size_t pos) {
    line_ += static_cast<int>(std::count(in_.begin() + static_cast<ptrdiff_t>(line_pos_),
                                         in_.begin() + static_cast<ptrdiff_t>(pos), '\n'));
    line_pos_ = pos;
    return line_;
  }
  absl::Status Refuse(std::string_view reason) { return TemplateError(LineAt(pos_), reason); }
  void Emit(Kind kind, std::string text, int64_t integer = 0) {
    tokens_.push_back({kind, std::move(text), integer, LineAt(pos_)});
  }

  // Literal text up to the next tag, and the tag.
  absl::Status TextAndTag() {
    size_t tag = pos_;
    while (tag < in_.size() &&
           !(in_[tag] == '{' && tag + 1 < in_.size() &&
             (in_[tag + 1] == '{' || in_[tag + 1] == '%' || in_[tag + 1] == '#'))) {
      ++tag;
    }
    std::string_view text = in_.substr(pos_, tag - pos_);
    if (tag == in_.size()) {
      if (!text.empty()) Emit(Kind::kText, std::string(text));
      pos_ = tag;
      return absl::OkStatus();
    }
    const char type = in_[tag + 1];
    const char sign = tag + 2 < in_.size() ? in_[tag + 2] : '\0';
    if (sign == '-') {
      text = text.substr(0, StripBounds(text, false, true).end_bytes);
    } else if (sign != '+' && type != '{') {
      // A block or comment alone at the start of its line takes its indentation with it.
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) &&
          StripBounds(text.substr(line), false, true).end_bytes == 0) {
        text = text.substr(0, line);
      }
    }
    if (!text.empty()) Emit(Kind::kText, std::string(text));
    pos_ = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
    if (type == '#') return Comment();
    Emit(type == '{' ? Kind::kOutputBegin : Kind::kBlockBegin, "");
    return Inside(type == '{' ? '}' : '%');
  }

  // Moves past the end of a tag ("%}", "}}" or "#}") if it is here, white space included.
  bool SkipTagEnd(char first) {
    const char sign = Peek() == '-' || Peek() == '+' ? Peek() : '\0';
    const size_t begin = sign == '\0' ? 0 : 1;
    if (Peek(begin) != first || Peek(begin + 1) != '}') return false;
    if (sign == '+' && first == '}') return false;  // "+}}" is an operator and an end
    pos_ += begin + 2;
    if (sign == '-') {
      pos_ += StripBounds(in_.substr(pos_), true, false).begin_bytes;
    } else if (sign == '\0' && first != '}' && Peek() == '\n') {
      ++pos_;
    }
    line_starting_ = in_[pos_ - 1] == '\n';
    return true;
  }

  absl::Status Comment() {
    while (pos_ < in_.size()) {
      if (SkipTagEnd('#')) return absl::OkStatus();
      ++pos_;
    }
    return Refuse("a comment without '#}'");
  }

  absl::Status Inside(char end) {
    while (pos_ < in_.size()) {
      if (std::isspace(static_cast<unsigned char>(Peek()))) {
        ++pos_;
        continue;
      }
      const int line = LineAt(pos_);
      if (SkipTagEnd(end)) {
        tokens_.push_back({end == '}' ? Kind::kOutputEnd : Kind::kBlockEnd, "", 0, line});
        return absl::OkStatus();
      }
      if (absl::Status status = Token(); !status.ok()) return status;
    }
    return Refuse(StrCat("a tag without '", std::string(1, end), "}'"));
  }

  absl::Status Token() {
    const unsigned char c = static_cast<unsigned char>(Peek());
    if (std::isalpha(c) || c == '_') {
      size_t end = pos_;
      while (end < in_.size() &&
             (std::isalnum(static_cast<unsigned char>(in_[end])) || in_[end] == '_')) {
        ++end;
      }
      Emit(Kind::kName, std::string(in_.substr(pos_, end - pos_)));
      pos_ = end;
      return absl::OkStatus();
    }
    if (std::isdigit(c)) return Integer();
    if (c == '\'' || c == '"') return String(static_cast<char>(c));
    constexpr std::array<std::string_view, 18> kOperators = {
        "==", "!=", "<=", ">=", "(", ")", "[", "]", ".", ",", ":", "|", "+", "-", "~", "%",
        "<",  ">"};
    for (const std::string_view op : kOperators) {
      if (!At(op)) continue;
      Emit(Kind::kOperator, std::string(op));
      pos_ += op.size();
      return absl::OkStatus();
    }
    if (c == '=') {
      Emit(Kind::kOperator, "=");
      ++pos_;
      return absl::OkStatus();
    }
    return Refuse(StrCat("unexpected ", QuoteForMessage(in_.substr(pos_, 1))));
  }

  absl::Status Integer() {
    int64_t value = 0;
    size_t end = pos_;
    for (; end < in_.size() && std::isdigit(static_cast<unsigned char>(in_[end])); ++end) {
      value = value * 10 + (in_[end] - '0');
      if (value > 1'000'000'000) return Refuse("an integer above 10^9");
    }
    if (end < in_.size() && (std::isalpha(static_cast<unsigned char>(in_[end])) ||
                             in_[end] == '_' || in_[end] == '.')) {
      return Refuse("only decimal integers are supported");
    }
    if (end - pos_ > 1 && in_[pos_] == '0') return Refuse("an integer with a leading zero");
    Emit(Kind::kInteger, "", value);
    pos_ = end;
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    std::string value;
    const size_t begin = pos_;
    for (size_t i = pos_ + 1; i < in_.size(); ++i) {
      if (in_[i] == quote) {
        pos_ = begin;
        Emit(Kind::kString, std::move(value));
        pos_ = i + 1;
        return absl::OkStatus();
      }
      if (in_[i] != '\\') {
        value.push_back(in_[i]);
        continue;
      }
      pos_ = i;
      if (absl::Status status = EscapeSequence(&i, &value); !status.ok()) return status;
    }
    return Refuse("a string without its closing quote");
  }

  // `*i` is at the backslash; leaves it at the last byte of the sequence.
  absl::Status EscapeSequence(size_t* i, std::string* value) {
    const char c = *i + 1 < in_.size() ? in_[*i + 1] : '\0';
    ++*i;
    switch (c) {
      case 'n':
        value->push_back('\n');
        return absl::OkStatus();
      case 't':
        value->push_back('\t');
        return absl::OkStatus();
      case 'r':
        value->push_back('\r');
        return absl::OkStatus();
      case '\\':
      case '\'':
      case '"':
        value->push_back(c);
        return absl::OkStatus();
      case 'x':
      case 'u': {
        const size_t digits = c == 'x' ? 2 : 4;
        uint32_t code_point = 0;
        for (size_t k = 0; k < digits; ++k) {
          const char digit = *i + 1 < in_.size() ? in_[*i + 1] : '\0';
          if (!std::isxdigit(static_cast<unsigned char>(digit))) {
            return Refuse("a broken \\x or \\u escape");
          }
          code_point = code_point * 16 + static_cast<uint32_t>(
              std::isdigit(static_cast<unsigned char>(digit)) ? digit - '0'
                                                              : (digit | 0x20) - 'a' + 10);
          ++*i;
        }
        if (code_point >= 0xD800 && code_point <= 0xDFFF) return Refuse("a surrogate escape");
        AppendUtf8(code_point, value);
        return absl::OkStatus();
      }
      default:
        return Refuse("only the escapes \\n \\t \\r \\\\ \\' \\\" \\xHH \\uHHHH are supported");
    }
  }

  std::string source_;
  std::string_view in_;
  size_t pos_ = 0;
  bool line_starting_ = true;
  int line_ = 1;
  size_t line_pos_ = 0;  // line_ is the line of this offset
  std::vector<TemplateToken> tokens_;
};

}  // namespace

absl::Status TemplateError(int line, std::string_view reason) {
  return absl::InvalidArgumentError(StrCat("line ", line, ": ", reason));
}

absl::StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace hyserve::tokenizer
