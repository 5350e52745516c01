// Interpreter of a parsed chat template.
#ifndef HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_EVAL_H_
#define HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_EVAL_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/chat_template_ast.h"

namespace hyserve::tokenizer {

struct TemplateMessage {
  SharedText role;
  SharedText content;
};

// What a rendering may use: exceeding a limit is ResourceExhausted.
struct TemplateLimits {
  size_t max_iterations = 0;    // of all loops together
  size_t max_output_bytes = 0;  // of the output, and of any one string on the way
  size_t max_copied_bytes = 0;  // by all string operations together
};

// One rendering; use once. Not thread-safe. `messages` must outlive it.
class TemplateEvaluator {
 public:
  using Variables = absl::flat_hash_map<std::string, TemplateValue>;

  TemplateEvaluator(const std::vector<TemplateMessage>& messages, Variables globals,
                    const TemplateLimits& limits);

  // InvalidArgument "line N: reason" or ResourceExhausted.
  absl::StatusOr<TemplateText> Run(const TemplateBody& body);

 private:
  absl::Status Execute(const TemplateBody& body);
  absl::Status ExecuteFor(const TemplateNode& node);
  absl::Status ExecuteIf(const TemplateNode& node);

  absl::StatusOr<TemplateValue> Evaluate(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Member(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Slice(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Binary(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Arithmetic(const TemplateExpr& expr, int64_t left, int64_t right);
  absl::StatusOr<TemplateValue> Compare(const TemplateExpr& expr, const TemplateValue& left,
                                        const TemplateValue& right);
  absl::StatusOr<TemplateValue> In(const TemplateExpr& expr, const TemplateValue& left,
                                   const TemplateValue& right);
  absl::StatusOr<TemplateValue> Filter(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Method(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Test(const TemplateExpr& expr);
  absl::StatusOr<TemplateValue> Join(const TemplateExpr& expr, const TemplateText& left,
                                     const TemplateText& right);
  absl::StatusOr<TemplateValue> Strip(const SharedText& text, bool left, bool right);
  // The text that a value prints as.
  absl::StatusOr<SharedText> Print(int line, const TemplateValue& value);

  TemplateValue LookUp(const std::string& name) const;
  absl::Status Charge(size_t bytes);

  const std::vector<TemplateMessage>& messages_;
  std::vector<Variables> scopes_;  // innermost last
  TemplateLimits limits_;
  size_t iterations_ = 0;
  size_t copied_bytes_ = 0;
  TemplateText output_;
};

}  // namespace hyserve::tokenizer

#endif  // HYSERVE_ENGINE_TOKENIZER_CHAT_TEMPLATE_EVAL_H_
