// A step over several sequences with caches in place, as the attention ops see it.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_ATTENTION_CASE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_ATTENTION_CASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/kernels/attention_batch.h"
#include "tests/engine/kernels/reference_ops.h"
#include "tests/engine/kernels/test_device.h"

namespace hyserve::kernels::testing {

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  int window = 128;
  tensor::DType cache_dtype = tensor::DType::kF32;
  tensor::DType activation_dtype = tensor::DType::kF32;  // queries and gates are rounded to it
  int heads_per_group() const { return num_heads / num_kv_heads; }
  std::string Name() const;
};

// With bf16 activations and caches, as a GPU keeps them.
inline AttentionShape Bf16Shape(int heads, int kv_heads, int head_dim, int v_head_dim,
                                int window = 128) {
  return {.num_heads = heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .v_head_dim = v_head_dim,
          .window = window,
          .cache_dtype = tensor::DType::kBF16,
          .activation_dtype = tensor::DType::kBF16};
}

// shape with the dtypes that the device has: a GPU keeps activations and caches in bf16.
AttentionShape OnDevice(const TestDevice& device, AttentionShape shape);

// Rows of a sequence in the step: positions [first_position, first_position + num_rows).
struct StepRows {
  int sequence = 0;
  int first_position = 0;
  int num_rows = 0;
};

// Sequences of random content. Everything about a sequence (queries, gates, both kinds of keys and
// values, at every position) is a function of the seed and the sequence's number, so steps over the
// same world can be compared.
class AttentionWorld {
 public:
  AttentionWorld(const AttentionShape& shape, std::vector<int> sequence_lengths, uint64_t seed);

  const AttentionShape& shape() const { return shape_; }
  int num_sequences() const { return static_cast<int>(lengths_.size()); }
  int length(int sequence) const { return lengths_[sequence]; }

  const KeyValues& pages(int sequence, int kv_head) const {
    return pages_[sequence * shape_.num_kv_heads + kv_head];
  }
  const KeyValues& window(int sequence, int kv_head) const {
    return window_[sequence * shape_.num_kv_heads + kv_head];
  }
  // Tests may plant what they need.
  KeyValues& mutable_pages(int sequence, int kv_head) {
    return pages_[sequence * shape_.num_kv_heads + kv_head];
  }
  // [num_heads * head_dim] of one position.
  const float* q(int sequence, int position) const {
    return q_[sequence].data() + static_cast<int64_t>(position) * q_cols();
  }
  float* mutable_q(int sequence, int position) {
    return q_[sequence].data() + static_cast<int64_t>(position) * q_cols();
  }
  const float* element_gate(int sequence, int position, int which) const {
    return gates_[sequence].data() + (2 * static_cast<int64_t>(position) + which) * out_cols();
  }
  int64_t q_cols() const { return static_cast<int64_t>(shape_.num_heads) * shape_.head_dim; }
  int64_t out_cols() const { return static_cast<int64_t>(shape_.num_heads) * shape_.v_head_dim; }
  const std::vector<float>& window_sink() const { return window_sink_; }
  const std::vector<float>& sparse_sink() const { return sparse_sink_; }

 private:
  const AttentionShape shape_;
  const std::vector<int> lengths_;
  std::vector<KeyValues> pages_;
  std::vector<KeyValues> window_;
  std::vector<std::vector<float>> q_;
  std::vector<std::vector<float>> gates_;
  std::vector<float> window_sink_;
  std::vector<float> sparse_sink_;
};

// A step of a world on a device: batch, pages (every byte that no row may read is NaN), rings, step
// buffers, queries and gates.
class AttentionStep {
 public:
  AttentionStep(TestDevice& device, const AttentionWorld& world, std::vector<StepRows> rows,
                uint64_t page_seed = 7);
  AttentionStep(const AttentionStep&) = delete;

  const AttentionBatch& batch() const { return batch_; }
  const std::vector<StepRows>& rows() const { return rows_; }
  int num_rows() const { return batch_.num_rows; }

  PagedKv pages;
  WindowKv ring;
  tensor::TensorView q;
  tensor::TensorView step_k;
  tensor::TensorView step_v;
  tensor::TensorView window_gate_element;
  tensor::TensorView sparse_gate_element;
  tensor::TensorView window_gate_head;
  tensor::TensorView sparse_gate_head;
  const float* window_sink = nullptr;
  const float* sparse_sink = nullptr;

 private:
  void BuildBatch(TestDevice& device, const AttentionWorld& world, uint64_t page_seed);
  void BuildPages(TestDevice& device, const AttentionWorld& world);
  void BuildWindow(TestDevice& device, const AttentionWorld& world);
  void BuildActivations(TestDevice& device, const AttentionWorld& world);

  const std::vector<StepRows> rows_;
  AttentionBatch batch_;
  std::vector<int32_t> row_begin_;
  std::vector<int32_t> first_position_;
  std::vector<int32_t> page_table_;
};

// The values of a head gate: the element gate's first element of that head.
std::vector<float> HeadGate(const AttentionWorld& world, const float* element_gate);

std::vector<int64_t> Range(int64_t begin, int64_t end);

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_ATTENTION_CASE_H_
