// The text of `hyserve model inspect`: what a config means in layers, parameters and bytes.
#ifndef HYSERVE_ENGINE_MODEL_INSPECT_H_
#define HYSERVE_ENGINE_MODEL_INSPECT_H_

#include <cstdint>
#include <span>
#include <string>

#include "engine/model/config.h"
#include "engine/tensor/tensor.h"

namespace hyserve::model {

struct ParameterCounts {
  int64_t total = 0;
  // Read for one token: all but the embedding table (one row of it is looked up) and the experts
  // that are not chosen. The output projection counts, also when it is the embedding table.
  int64_t active = 0;
};
ParameterCounts CountParameters(const ModelConfig& config);

// "F 11S F 11S F": runs of full (F), sliding (W) and sparse (S) layers.
std::string LayerPlanText(const ModelConfig& config);

// KV values per token (pages) and per sequence (rings), whatever their dtype.
int64_t PageValuesPerToken(const ModelConfig& config);
int64_t RingValues(const ModelConfig& config);

struct InspectOptions {
  tensor::DType weight_dtype = tensor::DType::kBF16;
  tensor::DType kv_dtype = tensor::DType::kBF16;
  std::span<const int64_t> handoff_tokens;  // a line for each; empty: 2^10, 2^15, 2^17, 2^20
};

// Lines of "name  value", each ended by a newline. REQUIRES: CheckModelConfig passes.
std::string InspectText(const ModelConfig& config, const InspectOptions& options);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_INSPECT_H_
