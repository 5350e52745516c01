// Runs FullAttention over a step of a world, and compares output, block scores and selection with
// the formula in double precision.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_FULL_ATTENTION_CASE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_FULL_ATTENTION_CASE_H_

#include <cstdint>
#include <vector>

#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {

struct FullAttentionResult {
  std::vector<float> out;
  std::vector<int32_t> selection;
  std::vector<float> scores;
  int64_t scores_stride = 0;
  int selected = 0;
};

class FullAttentionCase {
 public:
  explicit FullAttentionCase(TestDevice& device) : device_(device) {}

  static float Scale(const AttentionShape& shape);
  // Both expect the op to succeed.
  FullAttentionResult Run(const AttentionWorld& world, const AttentionStep& step, int selected);
  std::vector<float> RunWithoutOracle(const AttentionWorld& world, const AttentionStep& step);
  // Checks everything of row `row` of the step, which stands at `position` of `sequence`.
  void CheckRow(const AttentionWorld& world, const FullAttentionResult& result, int row,
                int sequence, int position);

 private:
  void CheckSelection(const Doubles& scores, double magnitude, const FullAttentionResult& result,
                      int64_t place);

  TestDevice& device_;
};

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_FULL_ATTENTION_CASE_H_
