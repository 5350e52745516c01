#include "engine/model/tensor_plan.h"

#include <cmath>
#include <utility>

#include "base/strings.h"

namespace hyserve::model {
namespace {

// y = x W^T has order 1 when x has.
TensorSpec Projection(std::string name, int64_t rows, int64_t cols) {
  return {std::move(name), {rows, cols}, 0, 1 / std::sqrt(static_cast<float>(cols))};
}

// A projection whose output is added to the residual: two per layer, so that the sum stays of
// order 1.
TensorSpec ResidualProjection(const ModelConfig& config, std::string name, int64_t rows,
                              int64_t cols) {
  TensorSpec spec = Projection(std::move(name), rows, cols);
  spec.deviation /= std::sqrt(2.0f * static_cast<float>(config.num_layers()));
  return spec;
}

TensorSpec NormWeight(const ModelConfig& config, std::string name) {
  return {std::move(name), {config.hidden_size}, 1, 0.05f};
}

TensorSpec Bias(std::string name, int64_t size, float deviation) {
  return {std::move(name), {size}, 0, deviation};
}

FeedForwardTensors FeedForward(const ModelConfig& config, const std::string& prefix,
                               int64_t intermediate) {
  const int64_t d = config.hidden_size;
  return {Projection(prefix + "gate_proj.weight", intermediate, d),
          Projection(prefix + "up_proj.weight", intermediate, d),
          ResidualProjection(config, prefix + "down_proj.weight", d, intermediate)};
}

void AddAttention(const ModelConfig& config, const LayerSpec& layer, const std::string& prefix,
                  LayerTensors* tensors) {
  const AttentionShape& shape = config.shape(layer.kind);
  const int64_t d = config.hidden_size;
  tensors->q = Projection(prefix + "q_proj.weight", int64_t{shape.num_heads} * shape.head_dim, d);
  tensors->k =
      Projection(prefix + "k_proj.weight", int64_t{shape.num_kv_heads} * shape.head_dim, d);
  tensors->v =
      Projection(prefix + "v_proj.weight", int64_t{shape.num_kv_heads} * shape.v_head_dim, d);
  tensors->o = ResidualProjection(config, prefix + "o_proj.weight", d,
                                  int64_t{shape.num_heads} * shape.v_head_dim);
  if (layer.kind == LayerKind::kFull) return;

  const bool sparse = layer.kind == LayerKind::kSparse;
  const int64_t gates = config.gate_granularity == GateGranularity::kHead
                            ? shape.num_heads
                            : int64_t{shape.num_heads} * shape.v_head_dim;
  if (sparse ? config.gate_sparse : config.gate_sliding) {
    tensors->window_gate.push_back(Projection(prefix + "g_proj.weight", gates, d));
  }
  if (config.window_sink) {
    tensors->window_sink.push_back(Bias(prefix + "attention_sink_bias", shape.num_heads, 1));
  }
  if (!sparse) return;
  if (config.gate_sparse) {
    tensors->sparse_gate.push_back(Projection(prefix + "sparse_g_proj.weight", gates, d));
  }
  if (config.sparse_sink) {
    tensors->sparse_sink.push_back(
        Bias(prefix + "sparse_attention_sink_bias", shape.num_heads, 1));
  }
}

void AddFeedForward(const ModelConfig& config, const LayerSpec& layer, const std::string& prefix,
                    LayerTensors* tensors) {
  if (!layer.is_moe) {
    tensors->feed_forward.push_back(FeedForward(config, prefix, config.intermediate_size));
    return;
  }
  tensors->router.push_back(
      Projection(prefix + "gate.weight", config.num_experts, config.hidden_size));
  if (config.router_correction_bias) {
    tensors->router_bias.push_back(
        Bias(prefix + "gate.e_score_correction_bias", config.num_experts, 0.05f));
  }
  for (int expert = 0; expert < config.num_experts; ++expert) {
    tensors->feed_forward.push_back(FeedForward(config,
                                                StrCat(prefix, "experts.", expert, "."),
                                                config.moe_intermediate_size));
  }
}

}  // namespace

LayerTensors TensorsOfLayer(const ModelConfig& config, int layer) {
  const std::string prefix = StrCat("model.layers.", layer, ".");
  LayerTensors tensors;
  tensors.input_norm = NormWeight(config, prefix + "input_layernorm.weight");
  tensors.post_attention_norm = NormWeight(config, prefix + "post_attention_layernorm.weight");
  AddAttention(config, config.layers[layer], prefix + "self_attn.", &tensors);
  AddFeedForward(config, config.layers[layer], prefix + "mlp.", &tensors);
  return tensors;
}

TensorSpec EmbeddingTensor(const ModelConfig& config) {
  // A tied table is the output projection too, so it is scaled as one.
  const float deviation =
      config.tie_word_embeddings ? 1 / std::sqrt(static_cast<float>(config.hidden_size)) : 1;
  return {"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, 0, deviation};
}

TensorSpec FinalNormTensor(const ModelConfig& config) {
  return NormWeight(config, "model.norm.weight");
}

TensorSpec OutputTensor(const ModelConfig& config) {
  return Projection("lm_head.weight", config.vocab_size, config.hidden_size);
}

std::vector<TensorSpec> AllTensors(const ModelConfig& config) {
  std::vector<TensorSpec> all = {EmbeddingTensor(config)};
  const auto append = [&](std::vector<TensorSpec>& some) {
    for (TensorSpec& spec : some) all.push_back(std::move(spec));
  };
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    LayerTensors tensors = TensorsOfLayer(config, layer);
    for (TensorSpec* spec : {&tensors.input_norm, &tensors.q, &tensors.k, &tensors.v}) {
      all.push_back(std::move(*spec));
    }
    append(tensors.window_gate);
    append(tensors.sparse_gate);
    append(tensors.window_sink);
    append(tensors.sparse_sink);
    all.push_back(std::move(tensors.o));
    all.push_back(std::move(tensors.post_attention_norm));
    append(tensors.router);
    append(tensors.router_bias);
    for (FeedForwardTensors& feed_forward : tensors.feed_forward) {
      all.push_back(std::move(feed_forward.gate));
      all.push_back(std::move(feed_forward.up));
      all.push_back(std::move(feed_forward.down));
    }
  }
  all.push_back(FinalNormTensor(config));
  if (!config.tie_word_embeddings) all.push_back(OutputTensor(config));
  return all;
}

}  // namespace hyserve::model
