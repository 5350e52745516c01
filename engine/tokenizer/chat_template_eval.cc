#include "engine/tokenizer/chat_template_eval.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/strings.h"
#include "engine/tokenizer/chat_template_lexer.h"
#include "engine/tokenizer/strict_json.h"

namespace hyserve::tokenizer {
namespace {

using ExprKind = TemplateExpr::Kind;
using Result = absl::StatusOr<TemplateValue>;

bool IsUndefined(const TemplateValue& value) {
  return std::holds_alternative<UndefinedValue>(value);
}
const TemplateText* TextOf(const TemplateValue& value) {
  const SharedText* text = std::get_if<SharedText>(&value);
  return text == nullptr ? nullptr : text->get();
}
// Integers, and booleans as 0 and 1.
std::optional<int64_t> NumberOf(const TemplateValue& value) {
  if (const int64_t* number = std::get_if<int64_t>(&value)) return *number;
  if (const bool* flag = std::get_if<bool>(&value)) return *flag ? 1 : 0;
  return std::nullopt;
}

std::string_view TypeName(const TemplateValue& value) {
  constexpr std::string_view kNames[] = {"undefined", "none",      "a boolean",  "an integer",
                                         "a string",  "a message", "a list", "loop"};
  return kNames[value.index()];
}

bool IsTrue(const TemplateValue& value) {
  if (const auto number = NumberOf(value)) return *number != 0;
  if (const TemplateText* text = TextOf(value)) return !text->bytes.empty();
  if (const auto* list = std::get_if<MessageListValue>(&value)) return list->end > list->begin;
  return std::holds_alternative<MessageValue>(value) || std::holds_alternative<LoopValue>(value);
}

}  // namespace

TemplateEvaluator::TemplateEvaluator(const std::vector<TemplateMessage>& messages,
                                     Variables globals, const TemplateLimits& limits)
    : messages_(messages), limits_(limits) {
  scopes_.push_back(std::move(globals));
}

absl::StatusOr<TemplateText> TemplateEvaluator::Run(const TemplateBody& body) {
  if (absl::Status status = Execute(body); !status.ok()) return status;
  return std::move(output_);
}

absl::Status TemplateEvaluator::Charge(size_t bytes) {
  copied_bytes_ += bytes;
  if (copied_bytes_ <= limits_.max_copied_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError("the template copies too much text");
}

TemplateValue TemplateEvaluator::LookUp(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto it = scope->find(name);
    if (it != scope->end()) return it->second;
  }
  return UndefinedValue{};
}

absl::Status TemplateEvaluator::Execute(const TemplateBody& body) {
  for (const TemplateNode& node : body) {
    absl::Status status;
    switch (node.kind) {
      case TemplateNode::Kind::kText:
      case TemplateNode::Kind::kOutput: {
        SharedText text = node.text;
        if (node.kind == TemplateNode::Kind::kOutput) {
          Result value = Evaluate(*node.expr);
          if (!value.ok()) return value.status();
          absl::StatusOr<SharedText> printed = Print(node.line, *value);
          if (!printed.ok()) return printed.status();
          text = *std::move(printed);
        }
        if (output_.bytes.size() + text->bytes.size() > limits_.max_output_bytes) {
          return absl::ResourceExhaustedError(StrCat("the template's output is longer than ",
                                                     limits_.max_output_bytes, " bytes"));
        }
        output_.Append(*text);
        break;
      }
      case TemplateNode::Kind::kIf:
        status = ExecuteIf(node);
        break;
      case TemplateNode::Kind::kFor:
        status = ExecuteFor(node);
        break;
      case TemplateNode::Kind::kSet: {
        Result value = Evaluate(*node.expr);
        if (!value.ok()) return value.status();
        scopes_.back()[node.name] = *std::move(value);
        break;
      }
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status TemplateEvaluator::ExecuteIf(const TemplateNode& node) {
  for (const TemplateBranch& branch : node.branches) {
    if (branch.condition != nullptr) {
      Result condition = Evaluate(*branch.condition);
      if (!condition.ok()) return condition.status();
      if (!IsTrue(*condition)) continue;
    }
    return Execute(branch.body);
  }
  return absl::OkStatus();
}

absl::Status TemplateEvaluator::ExecuteFor(const TemplateNode& node) {
  Result iterable = Evaluate(*node.expr);
  if (!iterable.ok()) return iterable.status();
  if (IsUndefined(*iterable)) return absl::OkStatus();
  const auto* list = std::get_if<MessageListValue>(&*iterable);
  if (list == nullptr) {
    return TemplateError(node.line, StrCat("cannot loop over ", TypeName(*iterable)));
  }
  for (size_t i = list->begin; i < list->end; ++i) {
    if (++iterations_ > limits_.max_iterations) {
      return absl::ResourceExhaustedError(StrCat("the template loops more than ",
                                                 limits_.max_iterations, " times"));
    }
    Variables scope;
    scope["loop"] = LoopValue{i - list->begin, list->end - list->begin};
    scope[node.name] = MessageValue{i};
    scopes_.push_back(std::move(scope));
    absl::Status status = Execute(node.body);
    scopes_.pop_back();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Result TemplateEvaluator::Evaluate(const TemplateExpr& expr) {
  switch (expr.kind) {
    case ExprKind::kLiteral:
      return expr.value;
    case ExprKind::kName:
      return LookUp(expr.name);
    case ExprKind::kMember:
      return Member(expr);
    case ExprKind::kSlice:
      return Slice(expr);
    case ExprKind::kBinary:
      return Binary(expr);
    case ExprKind::kTest:
      return Test(expr);
    case ExprKind::kFilter:
      return Filter(expr);
    case ExprKind::kMethod:
      return Method(expr);
    default:
      break;
  }
  Result first = Evaluate(*expr.args[0]);
  if (!first.ok()) return first;
  switch (expr.kind) {
    case ExprKind::kNot:
      return TemplateValue(!IsTrue(*first));
    case ExprKind::kNegate: {
      const auto number = NumberOf(*first);
      if (!number) return TemplateError(expr.line, StrCat("cannot negate ", TypeName(*first)));
      return TemplateValue(-*number);
    }
    case ExprKind::kAnd:
      return IsTrue(*first) ? Evaluate(*expr.args[1]) : first;
    case ExprKind::kOr:
      return IsTrue(*first) ? first : Evaluate(*expr.args[1]);
    case ExprKind::kConditional:
      if (IsTrue(*first)) return Evaluate(*expr.args[1]);
      if (expr.args[2] == nullptr) return TemplateValue(UndefinedValue{});
      return Evaluate(*expr.args[2]);
    default: {  // kRaise
      absl::StatusOr<SharedText> text = Print(expr.line, *first);
      if (!text.ok()) return text.status();
      return TemplateError(expr.line,
                           StrCat("the template refuses: ", QuoteForMessage((*text)->bytes)));
    }
  }
}

Result TemplateEvaluator::Member(const TemplateExpr& expr) {
  Result base = Evaluate(*expr.args[0]);
  if (!base.ok()) return base;
  std::string key = expr.name;
  if (expr.args.size() == 2) {
    Result index = Evaluate(*expr.args[1]);
    if (!index.ok()) return index;
    if (const auto* list = std::get_if<MessageListValue>(&*base)) {
      const auto number = NumberOf(*index);
      if (!number) return TemplateError(expr.line, "a list's index must be an integer");
      const int64_t size = static_cast<int64_t>(list->end - list->begin);
      const int64_t position = *number < 0 ? *number + size : *number;
      if (position < 0 || position >= size) return TemplateValue(UndefinedValue{});
      return TemplateValue(MessageValue{list->begin + static_cast<size_t>(position)});
    }
    const TemplateText* text = TextOf(*index);
    if (text == nullptr && !IsUndefined(*base)) {
      return TemplateError(expr.line, StrCat("cannot index ", TypeName(*base), " with ",
                                             TypeName(*index)));
    }
    if (text != nullptr) key = text->bytes;
  }
  if (IsUndefined(*base)) {
    return TemplateError(expr.line, StrCat("member ", QuoteForMessage(key), " of undefined"));
  }
  if (const auto* message = std::get_if<MessageValue>(&*base)) {
    if (key == "role") return TemplateValue(messages_[message->index].role);
    if (key == "content") return TemplateValue(messages_[message->index].content);
  }
  if (const auto* loop = std::get_if<LoopValue>(&*base)) {
    const int64_t index0 = static_cast<int64_t>(loop->index0);
    const int64_t length = static_cast<int64_t>(loop->length);
    if (key == "first") return TemplateValue(index0 == 0);
    if (key == "last") return TemplateValue(index0 + 1 == length);
    if (key == "index0") return TemplateValue(index0);
    if (key == "index") return TemplateValue(index0 + 1);
    if (key == "revindex") return TemplateValue(length - index0);
    if (key == "revindex0") return TemplateValue(length - index0 - 1);
    if (key == "length") return TemplateValue(length);
  }
  return TemplateValue(UndefinedValue{});
}

Result TemplateEvaluator::Slice(const TemplateExpr& expr) {
  Result base = Evaluate(*expr.args[0]);
  if (!base.ok()) return base;
  const auto* list = std::get_if<MessageListValue>(&*base);
  if (list == nullptr) {
    return TemplateError(expr.line, StrCat("cannot slice ", TypeName(*base)));
  }
  const int64_t size = static_cast<int64_t>(list->end - list->begin);
  int64_t bounds[2] = {0, size};
  for (int i = 0; i < 2; ++i) {
    if (expr.args[i + 1] == nullptr) continue;
    Result bound = Evaluate(*expr.args[i + 1]);
    if (!bound.ok()) return bound;
    const auto number = NumberOf(*bound);
    if (!number) return TemplateError(expr.line, "a slice's bounds must be integers");
    bounds[i] = std::clamp<int64_t>(*number < 0 ? *number + size : *number, 0, size);
  }
  bounds[1] = std::max(bounds[0], bounds[1]);
  return TemplateValue(MessageListValue{list->begin + static_cast<size_t>(bounds[0]),
                                        list->begin + static_cast<size_t>(bounds[1])});
}

Result TemplateEvaluator::Join(const TemplateExpr& expr, const TemplateText& left,
                               const TemplateText& right) {
  const size_t size = left.bytes.size() + right.bytes.size();
  if (size > limits_.max_output_bytes) {
    return absl::ResourceExhaustedError(StrCat("line ", expr.line, ": a string longer than ",
                                               limits_.max_output_bytes, " bytes"));
  }
  if (absl::Status status = Charge(size); !status.ok()) return status;
  auto joined = std::make_shared<TemplateText>();
  joined->bytes.reserve(size);
  joined->Append(left);
  joined->Append(right);
  return TemplateValue(SharedText(std::move(joined)));
}

Result TemplateEvaluator::Binary(const TemplateExpr& expr) {
  Result left = Evaluate(*expr.args[0]);
  if (!left.ok()) return left;
  Result right = Evaluate(*expr.args[1]);
  if (!right.ok()) return right;
  const std::string& op = expr.name;
  if (op == "~") {
    absl::StatusOr<SharedText> left_text = Print(expr.line, *left);
    if (!left_text.ok()) return left_text.status();
    absl::StatusOr<SharedText> right_text = Print(expr.line, *right);
    if (!right_text.ok()) return right_text.status();
    return Join(expr, **left_text, **right_text);
  }
  if (op == "in") return In(expr, *left, *right);
  if (op != "+" && op != "-" && op != "%") return Compare(expr, *left, *right);
  const auto left_number = NumberOf(*left);
  const auto right_number = NumberOf(*right);
  if (left_number && right_number) return Arithmetic(expr, *left_number, *right_number);
  const TemplateText* left_text = TextOf(*left);
  const TemplateText* right_text = TextOf(*right);
  if (op == "+" && left_text != nullptr && right_text != nullptr) {
    return Join(expr, *left_text, *right_text);
  }
  return TemplateError(expr.line, StrCat("cannot compute ", TypeName(*left), " ", op, " ",
                                         TypeName(*right)));
}

Result TemplateEvaluator::Arithmetic(const TemplateExpr& expr, int64_t left, int64_t right) {
  int64_t value = 0;
  if (expr.name == "%") {
    if (right == 0) return TemplateError(expr.line, "modulo by zero");
    if (right == -1) return TemplateValue(int64_t{0});
    value = left % right;
    if (value != 0 && (value < 0) != (right < 0)) value += right;  // the divisor's sign
  } else if (expr.name == "+" ? __builtin_add_overflow(left, right, &value)
                              : __builtin_sub_overflow(left, right, &value)) {
    return TemplateError(expr.line, "integer overflow");
  }
  return TemplateValue(value);
}

Result TemplateEvaluator::Compare(const TemplateExpr& expr, const TemplateValue& left,
                                  const TemplateValue& right) {
  const std::string& op = expr.name;
  const auto left_number = NumberOf(left);
  const auto right_number = NumberOf(right);
  const TemplateText* left_text = TextOf(left);
  const TemplateText* right_text = TextOf(right);
  std::optional<int> order;  // sign of left - right
  if (left_number && right_number) {
    order = (*left_number > *right_number) - (*left_number < *right_number);
  } else if (left_text != nullptr && right_text != nullptr) {
    const int sign = left_text->bytes.compare(right_text->bytes);
    order = (sign > 0) - (sign < 0);
  }
  if (op == "==" || op == "!=") {
    bool equal = order == 0;
    if (!order && left.index() == right.index()) {
      if (!IsUndefined(left) && !std::holds_alternative<NoneValue>(left)) {
        return TemplateError(expr.line, StrCat("cannot compare ", TypeName(left), " with ",
                                               TypeName(right)));
      }
      equal = true;
    }
    return TemplateValue(equal == (op == "=="));
  }
  if (!order) {
    return TemplateError(expr.line, StrCat("cannot order ", TypeName(left), " and ",
                                           TypeName(right)));
  }
  if (op == "<") return TemplateValue(*order < 0);
  if (op == "<=") return TemplateValue(*order <= 0);
  if (op == ">") return TemplateValue(*order > 0);
  return TemplateValue(*order >= 0);
}

Result TemplateEvaluator::In(const TemplateExpr& expr, const TemplateValue& left,
                             const TemplateValue& right) {
  const TemplateText* needle = TextOf(left);
  if (needle != nullptr && std::holds_alternative<MessageValue>(right)) {
    return TemplateValue(needle->bytes == "role" || needle->bytes == "content");
  }
  const TemplateText* text = TextOf(right);
  if (needle != nullptr && text != nullptr) {
    // std::string::find is quadratic when a long needle nearly matches everywhere, so both sides
    // are charged for.
    const size_t cost = text->bytes.size() +
                        std::min(needle->bytes.size(), size_t{64}) * text->bytes.size() / 16;
    if (needle->bytes.size() > 1024) {
      return TemplateError(expr.line, "the left side of 'in' is longer than 1024 bytes");
    }
    if (absl::Status status = Charge(cost); !status.ok()) return status;
    return TemplateValue(text->bytes.find(needle->bytes) != std::string::npos);
  }
  return TemplateError(expr.line, StrCat("cannot look for ", TypeName(left), " in ",
                                         TypeName(right)));
}

Result TemplateEvaluator::Strip(const SharedText& text, bool left, bool right) {
  const ByteRange bounds = StripBounds(text->bytes, left, right);
  if (bounds.end_bytes - bounds.begin_bytes == text->bytes.size()) return TemplateValue(text);
  if (absl::Status status = Charge(text->bytes.size()); !status.ok()) return status;
  return TemplateValue(SharedText(
      std::make_shared<TemplateText>(text->Slice(bounds.begin_bytes, bounds.end_bytes))));
}

Result TemplateEvaluator::Filter(const TemplateExpr& expr) {
  Result value = Evaluate(*expr.args[0]);
  if (!value.ok()) return value;
  if (expr.name == "trim") {
    absl::StatusOr<SharedText> text = Print(expr.line, *value);
    if (!text.ok()) return text.status();
    return Strip(*text, true, true);
  }
  if (IsUndefined(*value)) return TemplateValue(int64_t{0});
  if (const auto* list = std::get_if<MessageListValue>(&*value)) {
    return TemplateValue(static_cast<int64_t>(list->end - list->begin));
  }
  if (const TemplateText* text = TextOf(*value)) {
    return TemplateValue(static_cast<int64_t>(
        std::count_if(text->bytes.begin(), text->bytes.end(),
                      [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; })));
  }
  return TemplateError(expr.line, StrCat(TypeName(*value), " has no length"));
}

Result TemplateEvaluator::Method(const TemplateExpr& expr) {
  Result base = Evaluate(*expr.args[0]);
  if (!base.ok()) return base;
  const SharedText* text = std::get_if<SharedText>(&*base);
  if (text == nullptr) {
    return TemplateError(expr.line, StrCat(TypeName(*base), " has no method ", expr.name, "()"));
  }
  if (expr.args.size() == 1) return Strip(*text, expr.name != "rstrip", expr.name != "lstrip");
  Result argument = Evaluate(*expr.args[1]);
  if (!argument.ok()) return argument;
  const TemplateText* affix = TextOf(*argument);
  if (affix == nullptr) {
    return TemplateError(expr.line, StrCat(expr.name, "() needs a string"));
  }
  const std::string_view bytes = (*text)->bytes;
  return TemplateValue(expr.name == "startswith" ? bytes.starts_with(affix->bytes)
                                                 : bytes.ends_with(affix->bytes));
}

Result TemplateEvaluator::Test(const TemplateExpr& expr) {
  Result value = Evaluate(*expr.args[0]);
  if (!value.ok()) return value;
  if (expr.name == "defined") return TemplateValue(!IsUndefined(*value));
  if (expr.name == "undefined") return TemplateValue(IsUndefined(*value));
  if (expr.name == "none") return TemplateValue(std::holds_alternative<NoneValue>(*value));
  if (expr.name == "string") return TemplateValue(std::holds_alternative<SharedText>(*value));
  return TemplateValue(std::holds_alternative<MessageValue>(*value));
}

absl::StatusOr<SharedText> TemplateEvaluator::Print(int line, const TemplateValue& value) {
  if (const SharedText* text = std::get_if<SharedText>(&value)) return *text;
  if (const bool* flag = std::get_if<bool>(&value)) return MakeText(*flag ? "True" : "False");
  if (const int64_t* number = std::get_if<int64_t>(&value)) return MakeText(StrCat(*number));
  if (IsUndefined(value)) return MakeText("");
  if (std::holds_alternative<NoneValue>(value)) return MakeText("None");
  return TemplateError(line, StrCat("cannot print ", TypeName(value)));
}

}  // namespace hyserve::tokenizer
