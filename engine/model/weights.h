// The weights of a net on a device, in the form that the ops want.
#ifndef HYSERVE_ENGINE_MODEL_WEIGHTS_H_
#define HYSERVE_ENGINE_MODEL_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"
#include "engine/model/config.h"
#include "engine/model/tensor_source.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

using Matrix = std::unique_ptr<kernels::PackedMatrix>;

// Columns of the stacked projection of a layer, in this order; 0: not there.
struct ProjectionColumns {
  int64_t q = 0;  // 0 in a last layer that is pruned: it has a matrix of its own
  int64_t k = 0;
  int64_t v = 0;
  int64_t window_gate = 0;
  int64_t sparse_gate = 0;
  int64_t total() const { return q + k + v + window_gate + sparse_gate; }
};

struct LayerWeights {
  tensor::Buffer input_norm;           // f32 [hidden]
  tensor::Buffer post_attention_norm;  // f32 [hidden]
  ProjectionColumns columns;
  Matrix projection;           // [columns.total(), hidden]
  Matrix pruned_q;             // last layer of the net when it is full, else null
  Matrix output;               // [hidden, num_heads * v_head_dim]
  tensor::Buffer window_sink;  // f32 [num_heads], or empty
  tensor::Buffer sparse_sink;
  // One entry in a dense layer, one per expert otherwise.
  std::vector<Matrix> gate_up;  // [2 * intermediate, hidden]
  std::vector<Matrix> down;     // [hidden, intermediate]
  Matrix router;                // f32 [num_experts, hidden], MoE only
  tensor::Buffer router_bias;   // f32 [num_experts], or empty
};

struct ModelWeights {
  tensor::Buffer embedding;
  tensor::TensorView embedding_table;  // f32 or bf16 [vocab, hidden]
  std::vector<LayerWeights> layers;
  tensor::Buffer final_norm;  // f32 [hidden]
  Matrix logits;              // [vocab, hidden]
  // f64 [rotary_dim / 2]: theta^(-2 i / rotary_dim)
  tensor::Buffer full_inv_freq;
  tensor::Buffer sliding_inv_freq;

  size_t bytes = 0;            // on the device
  int64_t num_parameters = 0;  // as in the checkpoint: tied embeddings count once
  std::string digest;
};

// ModelWeights::bytes of these weights, before any is read. The device may need a little more: it
// allocates in pages.
absl::StatusOr<size_t> WeightBytes(tensor::Device& device, const ModelConfig& config,
                                   TensorSource& source);

// Reads tensor by tensor, so that the host needs memory for one stack of matrices (Q, K, V and
// gates of a layer, or the embedding) beside the weights. Errors: the source's, and
// RESOURCE_EXHAUSTED.
absl::StatusOr<ModelWeights> LoadWeights(tensor::Device& device, const ModelConfig& config,
                                         TensorSource& source);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_WEIGHTS_H_
