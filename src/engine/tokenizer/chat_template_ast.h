// Syntax tree of a chat template. Plain data; built by the parser, read by the interpreter.
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_AST_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_AST_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer/chat_template_value.h"

namespace hyserve::tokenizer {

struct TemplateExpr {
  enum class Kind {
    kLiteral,      // value
    kName,         // name
    kMember,       // args[0] . name, or args[0][args[1]]
    kSlice,        // args[0] [ args[1] : args[2] ]; a missing bound is null
    kNot,          // not args[0]
    kNegate,       // - args[0]
    kAnd,
    kOr,
    kBinary,       // args[0] name args[1]; name: + - % ~ == != < <= > >= in
    kConditional,  // args[1] if args[0] else args[2]; args[2] may be null
    kTest,         // args[0] is name
    kFilter,       // args[0] | name
    kMethod,       // args[0] . name ( args[1...] )
    kRaise,        // raise_exception(args[0])
  };
  Kind kind = Kind::kLiteral;
  int line = 1;
  std::string name;
  TemplateValue value;
  std::vector<std::unique_ptr<TemplateExpr>> args;
};
using TemplateExprPtr = std::unique_ptr<TemplateExpr>;

struct TemplateNode;
using TemplateBody = std::vector<TemplateNode>;

struct TemplateBranch {
  TemplateExprPtr condition;  // null: else
  TemplateBody body;
};

struct TemplateNode {
  enum class Kind { kText, kOutput, kIf, kFor, kSet };
  Kind kind = Kind::kText;
  int line = 1;
  SharedText text;                       // kText
  std::string name;                      // kFor, kSet: the variable
  TemplateExprPtr expr;                  // kOutput, kFor (what is iterated), kSet
  std::vector<TemplateBranch> branches;  // kIf
  TemplateBody body;                     // kFor
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_AST_H_
