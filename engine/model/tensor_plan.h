// Every tensor that a checkpoint of a given config has: name, shape, and how random weights for it
// are drawn. The one list behind loading, checking, making and counting.
#ifndef HYSERVE_ENGINE_MODEL_TENSOR_PLAN_H_
#define HYSERVE_ENGINE_MODEL_TENSOR_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/config.h"

namespace hyserve::model {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // rank 1 or 2
  // Random weights: mean and standard deviation.
  float mean = 0;
  float deviation = 0;

  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape.size() > 1 ? shape[1] : 1; }
  int64_t num_elements() const { return rows() * cols(); }
};

struct FeedForwardTensors {
  TensorSpec gate, up, down;
};

struct LayerTensors {
  TensorSpec input_norm, post_attention_norm;
  TensorSpec q, k, v, o;
  std::vector<TensorSpec> window_gate;  // empty, or one
  std::vector<TensorSpec> sparse_gate;
  std::vector<TensorSpec> window_sink;
  std::vector<TensorSpec> sparse_sink;
  // Dense: one. MoE: one per expert, and the router.
  std::vector<FeedForwardTensors> feed_forward;
  std::vector<TensorSpec> router;
  std::vector<TensorSpec> router_bias;
};

// REQUIRES of all: CheckModelConfig passes.
LayerTensors TensorsOfLayer(const ModelConfig& config, int layer);
TensorSpec EmbeddingTensor(const ModelConfig& config);
TensorSpec FinalNormTensor(const ModelConfig& config);
// Not in a checkpoint with tied embeddings.
TensorSpec OutputTensor(const ModelConfig& config);

// All of them, embedding first, layer by layer.
std::vector<TensorSpec> AllTensors(const ModelConfig& config);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_TENSOR_PLAN_H_
