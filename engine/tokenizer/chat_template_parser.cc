#include "engine/tokenizer/chat_template_parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/status/status.h"
#include "base/strings.h"
#include "engine/tokenizer/chat_template_lexer.h"
#include "engine/tokenizer/strict_json.h"

namespace hyserve::tokenizer {
namespace {

using Kind = TemplateToken::Kind;
using ExprKind = TemplateExpr::Kind;

constexpr int kMaxDepth = 64;
constexpr int kMaxTreeDepth = 200;  // of one expression: what the interpreter recurses over

int TreeDepth(const TemplateExpr& expr) {
  int deepest = 0;
  for (const TemplateExprPtr& arg : expr.args) {
    if (arg != nullptr) deepest = std::max(deepest, TreeDepth(*arg));
  }
  return deepest + 1;
}

bool Contains(std::initializer_list<std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Recursive descent. The first error is kept in status_; after it every step returns at once.
class Parser {
 public:
  explicit Parser(std::vector<TemplateToken> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<TemplateBody> Run() {
    TemplateBody body = Body({});
    if (!status_.ok()) return status_;
    return body;
  }

 private:
  // Counts nesting for as long as it lives.
  class Depth {
   public:
    explicit Depth(Parser* parser) : parser_(parser) {
      if (++parser_->depth_ > kMaxDepth) parser_->Refuse("nested more than 64 deep");
    }
    ~Depth() { --parser_->depth_; }

   private:
    Parser* parser_;
  };

  const TemplateToken& Peek() const { return tokens_[next_]; }
  TemplateToken Take() {
    TemplateToken token = tokens_[next_];
    if (token.kind != Kind::kEnd) ++next_;
    return token;
  }
  void Refuse(std::string_view reason) {
    if (status_.ok()) status_ = TemplateError(Peek().line, reason);
  }
  bool ok() const { return status_.ok(); }
  bool IsOperator(std::string_view op) const {
    return Peek().kind == Kind::kOperator && Peek().text == op;
  }
  bool IsName(std::string_view name) const {
    return Peek().kind == Kind::kName && Peek().text == name;
  }
  bool SkipOperator(std::string_view op) {
    if (!IsOperator(op)) return false;
    Take();
    return true;
  }
  bool SkipName(std::string_view name) {
    if (!IsName(name)) return false;
    Take();
    return true;
  }
  void ExpectOperator(std::string_view op) {
    if (!SkipOperator(op)) Refuse(StrCat("expected '", op, "'"));
  }
  void Expect(Kind kind, std::string_view what) {
    if (Peek().kind != kind) {
      Refuse(StrCat("expected ", what));
    } else {
      Take();
    }
  }
  std::string ExpectName(std::string_view what) {
    if (Peek().kind != Kind::kName) {
      Refuse(StrCat("expected ", what));
      return "";
    }
    const std::string name = Take().text;
    if (Contains({"loop", "true", "false", "none", "True", "False", "None", "not", "and", "or",
                  "in", "is", "if", "else"},
                 name)) {
      Refuse(StrCat("'", name, "' cannot be assigned to"));
    }
    return name;
  }

  // Statements up to a block whose name is in `ends`; that name has been taken.
  TemplateBody Body(std::initializer_list<std::string_view> ends) {
    Depth depth(this);
    TemplateBody body;
    while (ok()) {
      const TemplateToken token = Take();
      if (token.kind == Kind::kEnd) {
        if (ends.size() != 0) Refuse(StrCat("missing {% ", *(ends.end() - 1), " %}"));
        return body;
      }
      TemplateNode node;
      node.line = token.line;
      if (token.kind == Kind::kText) {
        node.kind = TemplateNode::Kind::kText;
        node.text = MakeText(token.text);
        body.push_back(std::move(node));
      } else if (token.kind == Kind::kOutputBegin) {
        node.kind = TemplateNode::Kind::kOutput;
        node.expr = FullExpression();
        Expect(Kind::kOutputEnd, "'}}'");
        body.push_back(std::move(node));
      } else if (token.kind == Kind::kBlockBegin) {
        if (Peek().kind != Kind::kName) {
          Refuse("expected the name of a block");
          return body;
        }
        if (Contains(ends, Peek().text)) {
          block_ = Take().text;
          return body;
        }
        Block(&node);
        body.push_back(std::move(node));
      } else {
        Refuse("unexpected token");
      }
    }
    return body;
  }

  void Block(TemplateNode* node) {
    const TemplateToken name = Peek();
    if (SkipName("if")) return If(node);
    if (SkipName("for")) return For(node);
    if (SkipName("set")) return Set(node);
    Refuse(StrCat("the block {% ", name.text, " %} is not supported"));
  }

  void If(TemplateNode* node) {
    node->kind = TemplateNode::Kind::kIf;
    bool has_condition = true;
    while (ok()) {
      TemplateBranch branch;
      if (has_condition) branch.condition = FullExpression();
      Expect(Kind::kBlockEnd, "'%}'");
      branch.body = has_condition ? Body({"elif", "else", "endif"}) : Body({"endif"});
      node->branches.push_back(std::move(branch));
      if (!ok()) return;
      if (block_ == "endif") break;
      has_condition = block_ == "elif";
    }
    Expect(Kind::kBlockEnd, "'%}'");
  }

  void For(TemplateNode* node) {
    node->kind = TemplateNode::Kind::kFor;
    node->name = ExpectName("the name of the loop variable");
    if (!SkipName("in")) Refuse("expected 'in' (one loop variable only)");
    node->expr = Bounded(Or());
    if (IsName("if") || IsName("recursive")) {
      Refuse("filtered and recursive loops are not supported");
    }
    Expect(Kind::kBlockEnd, "'%}'");
    node->body = Body({"endfor"});
    Expect(Kind::kBlockEnd, "'%}' ({% else %} of a loop is not supported)");
  }

  void Set(TemplateNode* node) {
    node->kind = TemplateNode::Kind::kSet;
    node->name = ExpectName("the name of a variable");
    if (!SkipOperator("=")) Refuse("only {% set name = expression %} is supported");
    node->expr = FullExpression();
    Expect(Kind::kBlockEnd, "'%}'");
  }

  TemplateExprPtr Make(ExprKind kind, std::string name = "") {
    auto expr = std::make_unique<TemplateExpr>();
    expr->kind = kind;
    expr->line = Peek().line;
    expr->name = std::move(name);
    return expr;
  }
  TemplateExprPtr Make(ExprKind kind, std::string name, TemplateExprPtr left,
                       TemplateExprPtr right = nullptr) {
    TemplateExprPtr expr = Make(kind, std::move(name));
    expr->args.push_back(std::move(left));
    if (right != nullptr) expr->args.push_back(std::move(right));
    return expr;
  }
  // Left-associative chains nest in the tree as deep as they are long.
  void CountLink(int* links) {
    if (++*links > kMaxDepth) Refuse("an expression with more than 64 links in a chain");
  }

  TemplateExprPtr Bounded(TemplateExprPtr expr) {
    if (ok() && TreeDepth(*expr) > kMaxTreeDepth) {
      Refuse("an expression deeper than 200 operations");
    }
    return expr;
  }
  TemplateExprPtr FullExpression() { return Bounded(Expression()); }

  TemplateExprPtr Expression() {
    Depth depth(this);
    if (!ok()) return Make(ExprKind::kLiteral);
    TemplateExprPtr value = Or();
    int links = 0;
    while (ok() && SkipName("if")) {
      CountLink(&links);
      TemplateExprPtr conditional = Make(ExprKind::kConditional);
      conditional->args.push_back(Or());
      conditional->args.push_back(std::move(value));
      conditional->args.push_back(SkipName("else") ? Expression() : nullptr);
      value = std::move(conditional);
    }
    return value;
  }

  TemplateExprPtr Or() {
    TemplateExprPtr left = And();
    for (int links = 0; ok() && SkipName("or"); CountLink(&links)) {
      left = Make(ExprKind::kOr, "", std::move(left), And());
    }
    return left;
  }

  TemplateExprPtr And() {
    TemplateExprPtr left = Not();
    for (int links = 0; ok() && SkipName("and"); CountLink(&links)) {
      left = Make(ExprKind::kAnd, "", std::move(left), Not());
    }
    return left;
  }

  TemplateExprPtr Not() {
    Depth depth(this);
    if (ok() && SkipName("not")) return Make(ExprKind::kNot, "", Not());
    return Compare();
  }

  // The comparison operator here, taken, or "".
  std::string ComparisonOperator() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (SkipOperator(op)) return std::string(op);
    }
    if (SkipName("in")) return "in";
    if (IsName("not") && tokens_[next_ + 1].kind == Kind::kName &&
        tokens_[next_ + 1].text == "in") {
      Take();
      Take();
      return "not in";
    }
    return "";
  }

  TemplateExprPtr Compare() {
    TemplateExprPtr left = Sum();
    std::string op = ComparisonOperator();
    if (op.empty()) return left;
    const bool negated = op == "not in";
    if (negated) op = "in";
    left = Make(ExprKind::kBinary, std::move(op), std::move(left), Sum());
    if (negated) left = Make(ExprKind::kNot, "", std::move(left));
    if (!ComparisonOperator().empty()) Refuse("chained comparisons are not supported");
    return left;
  }

  // Jinja's order: + and - bind weaker than ~, which binds weaker than %.
  TemplateExprPtr Sum() {
    TemplateExprPtr left = Concat();
    for (int links = 0; ok() && (IsOperator("+") || IsOperator("-")); CountLink(&links)) {
      std::string op = Take().text;
      left = Make(ExprKind::kBinary, std::move(op), std::move(left), Concat());
    }
    return left;
  }

  TemplateExprPtr Concat() {
    TemplateExprPtr left = Modulo();
    for (int links = 0; ok() && SkipOperator("~"); CountLink(&links)) {
      left = Make(ExprKind::kBinary, "~", std::move(left), Modulo());
    }
    return left;
  }

  TemplateExprPtr Modulo() {
    TemplateExprPtr left = Unary(true);
    for (int links = 0; ok() && SkipOperator("%"); CountLink(&links)) {
      left = Make(ExprKind::kBinary, "%", std::move(left), Unary(true));
    }
    return left;
  }

  TemplateExprPtr Unary(bool with_filter) {
    Depth depth(this);
    TemplateExprPtr value;
    if (ok() && SkipOperator("-")) {
      value = Make(ExprKind::kNegate, "", Unary(false));
    } else {
      value = Postfix(Primary());
    }
    return with_filter ? FiltersAndTests(std::move(value)) : std::move(value);
  }

  TemplateExprPtr Literal(TemplateValue value) {
    TemplateExprPtr expr = Make(ExprKind::kLiteral);
    expr->value = std::move(value);
    return expr;
  }

  TemplateExprPtr Primary() {
    if (!ok()) return Make(ExprKind::kLiteral);
    const TemplateToken token = Take();
    switch (token.kind) {
      case Kind::kString: {
        std::string text = token.text;
        while (Peek().kind == Kind::kString) text += Take().text;
        return Literal(MakeText(text));
      }
      case Kind::kInteger:
        return Literal(token.integer);
      case Kind::kName:
        if (token.text == "true" || token.text == "True") return Literal(true);
        if (token.text == "false" || token.text == "False") return Literal(false);
        if (token.text == "none" || token.text == "None") return Literal(NoneValue{});
        if (IsOperator("(")) return Call(token.text);
        return Make(ExprKind::kName, token.text);
      case Kind::kOperator:
        if (token.text == "(") {
          TemplateExprPtr inner = Expression();
          ExpectOperator(")");
          return inner;
        }
        break;
      default:
        break;
    }
    Refuse(token.text.empty() ? "expected an expression"
                              : StrCat("unexpected ", QuoteForMessage(token.text)));
    return Make(ExprKind::kLiteral);
  }

  TemplateExprPtr Call(const std::string& name) {
    if (name != "raise_exception") {
      Refuse(StrCat("the function ", QuoteForMessage(name), " is not supported"));
      return Make(ExprKind::kLiteral);
    }
    Take();
    TemplateExprPtr call = Make(ExprKind::kRaise);
    call->args.push_back(Expression());
    ExpectOperator(")");
    return call;
  }

  TemplateExprPtr Postfix(TemplateExprPtr base) {
    int links = 0;
    while (ok()) {
      if (SkipOperator(".")) {
        if (Peek().kind != Kind::kName) {
          Refuse("expected a name after '.'");
          break;
        }
        const std::string name = Take().text;
        base = IsOperator("(") ? Method(name, std::move(base))
                               : Make(ExprKind::kMember, name, std::move(base));
      } else if (SkipOperator("[")) {
        base = Subscript(std::move(base));
      } else if (IsOperator("(")) {
        Refuse("only raise_exception() and string methods can be called");
      } else {
        break;
      }
      CountLink(&links);
    }
    return base;
  }

  TemplateExprPtr Method(const std::string& name, TemplateExprPtr base) {
    const bool strips = Contains({"strip", "lstrip", "rstrip"}, name);
    const bool tests = Contains({"startswith", "endswith"}, name);
    if (!strips && !tests) {
      Refuse(StrCat("the method ", QuoteForMessage(name), " is not supported"));
      return base;
    }
    ExpectOperator("(");
    TemplateExprPtr call = Make(ExprKind::kMethod, name, std::move(base));
    if (tests) call->args.push_back(Expression());
    if (!SkipOperator(")")) Refuse(StrCat("wrong number of arguments for ", name, "()"));
    return call;
  }

  TemplateExprPtr Subscript(TemplateExprPtr base) {
    TemplateExprPtr first = IsOperator(":") ? nullptr : Expression();
    if (!SkipOperator(":")) {
      ExpectOperator("]");
      TemplateExprPtr member = Make(ExprKind::kMember, "", std::move(base));
      member->args.push_back(std::move(first));
      return member;
    }
    TemplateExprPtr slice = Make(ExprKind::kSlice, "", std::move(base));
    slice->args.push_back(std::move(first));
    slice->args.push_back(IsOperator("]") ? nullptr : Expression());
    if (!SkipOperator("]")) Refuse("a slice has the form [begin:end]");
    return slice;
  }

  TemplateExprPtr FiltersAndTests(TemplateExprPtr value) {
    int links = 0;
    while (ok()) {
      if (SkipOperator("|")) {
        const std::string name = Peek().kind == Kind::kName ? Take().text : "";
        if (!Contains({"trim", "length", "count"}, name)) {
          Refuse(StrCat("the filter ", QuoteForMessage(name), " is not supported"));
        }
        if (IsOperator("(")) Refuse("a filter with arguments is not supported");
        value = Make(ExprKind::kFilter, name, std::move(value));
      } else if (SkipName("is")) {
        const bool negated = SkipName("not");
        const std::string name = Peek().kind == Kind::kName ? Take().text : "";
        if (!Contains({"defined", "undefined", "none", "string", "mapping"}, name)) {
          Refuse(StrCat("the test ", QuoteForMessage(name), " is not supported"));
        }
        value = Make(ExprKind::kTest, name, std::move(value));
        if (negated) value = Make(ExprKind::kNot, "", std::move(value));
      } else {
        break;
      }
      CountLink(&links);
    }
    return value;
  }

  std::vector<TemplateToken> tokens_;
  size_t next_ = 0;
  int depth_ = 0;
  std::string block_;  // the name that ended the last Body
  absl::Status status_;
};

}  // namespace

absl::StatusOr<TemplateBody> ParseTemplate(std::string_view source) {
  absl::StatusOr<std::vector<TemplateToken>> tokens = LexTemplate(source);
  if (!tokens.ok()) return tokens.status();
  return Parser(*std::move(tokens)).Run();
}

}  // namespace hyserve::tokenizer
