// Runs WindowSparseAttention over a step of a world, and the formula in double precision.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_WINDOW_SPARSE_CASE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_WINDOW_SPARSE_CASE_H_

#include <cstdint>
#include <vector>

#include "tests/engine/kernels/attention_case.h"

namespace hyserve::kernels::testing {

enum class Gate { kNone, kHead, kElement };

struct Variant {
  bool sparse = true;
  bool sinks = true;
  Gate gate = Gate::kHead;
  int selected_blocks = 3;
};

class WindowSparseCase {
 public:
  explicit WindowSparseCase(TestDevice& device) : device_(device) {}

  // Random visible blocks of every row and group, ascending, padded with -1.
  static std::vector<int32_t> RandomSelection(const AttentionWorld& world,
                                              const AttentionStep& step, int selected);
  // The op's output; expects it to succeed.
  std::vector<float> Run(const AttentionWorld& world, const AttentionStep& step,
                         const Variant& variant, const std::vector<int32_t>& selection);
  static float Scale(const AttentionShape& shape);
  // One row by the formula; selection: that row's [num_kv_heads, selected_blocks].
  static Doubles Want(const AttentionWorld& world, const Variant& variant, int sequence, int t,
                      const int32_t* selection);
  // Compares all rows of short steps, and the edges and every stride-th row of long ones.
  void CheckRows(const AttentionWorld& world, const AttentionStep& step, const Variant& variant,
                 const std::vector<int32_t>& selection, const std::vector<float>& out,
                 int stride = 29);

 private:
  TestDevice& device_;
};

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_WINDOW_SPARSE_CASE_H_
