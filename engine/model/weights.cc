#include "engine/model/weights.h"

#include <cmath>
#include <span>
#include <utility>

#include "engine/model/host_stack.h"
#include "engine/model/tensor_plan.h"

namespace hyserve::model {
namespace {

using tensor::Buffer;
using tensor::DType;
using tensor::TensorView;

class Loader {
 public:
  // measuring: nothing is read or allocated, and of the weights only the numbers are right.
  Loader(tensor::Device& device, const ModelConfig& config, TensorSource& source, bool measuring)
      : device_(device), config_(config), source_(source), measuring_(measuring) {}

  absl::StatusOr<ModelWeights> Run() {
    if (absl::Status status = LoadGlobals(); !status.ok()) return status;
    for (int layer = 0; layer < config_.num_layers(); ++layer) {
      if (absl::Status status = LoadLayer(layer); !status.ok()) return status;
    }
    if (measuring_) return std::move(weights_);
    absl::StatusOr<std::string> digest = source_.Finish();
    if (!digest.ok()) return digest.status();
    weights_.digest = *std::move(digest);
    return std::move(weights_);
  }

 private:
  absl::StatusOr<std::vector<TensorView>> Read(const std::vector<const TensorSpec*>& specs,
                                               bool as_f32) {
    if (measuring_) return HostStack::Shapes(source_, specs, as_f32);
    return stack_.Read(source_, specs, as_f32);
  }

  absl::Status LoadGlobals() {
    const TensorSpec embedding = EmbeddingTensor(config_);
    if (absl::Status status = LoadEmbedding(embedding); !status.ok()) return status;
    if (!config_.tie_word_embeddings) {
      const TensorSpec output = OutputTensor(config_);
      if (absl::Status status = LoadMatrix({&output}, &weights_.logits); !status.ok()) {
        return status;
      }
    }
    if (absl::Status status = LoadVector(FinalNormTensor(config_), &weights_.final_norm);
        !status.ok()) {
      return status;
    }
    if (absl::Status status = MakeInvFreq(config_.full, &weights_.full_inv_freq); !status.ok()) {
      return status;
    }
    return MakeInvFreq(config_.sliding, &weights_.sliding_inv_freq);
  }

  // The table, and with tied embeddings the output projection from the same bytes.
  absl::Status LoadEmbedding(const TensorSpec& spec) {
    const bool as_f32 = source_.DTypeOf(spec) == DType::kF16;
    const absl::StatusOr<std::vector<TensorView>> parts = Read({&spec}, as_f32);
    if (!parts.ok()) return parts.status();
    const TensorView& host = (*parts)[0];
    const size_t bytes = host.rows * host.cols * tensor::SizeOf(host.dtype);
    if (absl::Status status = ToDevice(host.data, bytes, &weights_.embedding); !status.ok()) {
      return status;
    }
    weights_.embedding_table = weights_.embedding.View(host.dtype, host.rows, host.cols);
    weights_.num_parameters += spec.num_elements();
    if (!config_.tie_word_embeddings) return absl::OkStatus();
    return Pack(*parts, &weights_.logits);
  }

  absl::Status LoadLayer(int layer) {
    const LayerTensors tensors = TensorsOfLayer(config_, layer);
    LayerWeights out;
    const bool pruned = config_.last_layer_prunable() && layer == config_.num_layers() - 1;
    if (absl::Status status = LoadProjection(tensors, pruned, &out); !status.ok()) return status;
    if (absl::Status status = LoadMatrix({&tensors.o}, &out.output); !status.ok()) return status;

    std::vector<std::pair<const TensorSpec*, Buffer*>> vectors = {
        {&tensors.input_norm, &out.input_norm},
        {&tensors.post_attention_norm, &out.post_attention_norm}};
    const auto add_optional = [&](const std::vector<TensorSpec>& specs, Buffer* buffer) {
      if (!specs.empty()) vectors.push_back({&specs[0], buffer});
    };
    add_optional(tensors.window_sink, &out.window_sink);
    add_optional(tensors.sparse_sink, &out.sparse_sink);
    add_optional(tensors.router_bias, &out.router_bias);
    for (const auto& [spec, buffer] : vectors) {
      if (absl::Status status = LoadVector(*spec, buffer); !status.ok()) return status;
    }
    if (absl::Status status = LoadFeedForward(tensors, &out); !status.ok()) return status;
    weights_.layers.push_back(std::move(out));
    return absl::OkStatus();
  }

  absl::Status LoadProjection(const LayerTensors& tensors, bool pruned, LayerWeights* out) {
    std::vector<const TensorSpec*> stacked;
    if (pruned) {
      if (absl::Status status = LoadMatrix({&tensors.q}, &out->pruned_q); !status.ok()) {
        return status;
      }
    } else {
      stacked.push_back(&tensors.q);
      out->columns.q = tensors.q.rows();
    }
    stacked.push_back(&tensors.k);
    out->columns.k = tensors.k.rows();
    stacked.push_back(&tensors.v);
    out->columns.v = tensors.v.rows();
    for (const TensorSpec& gate : tensors.window_gate) {
      stacked.push_back(&gate);
      out->columns.window_gate = gate.rows();
    }
    for (const TensorSpec& gate : tensors.sparse_gate) {
      stacked.push_back(&gate);
      out->columns.sparse_gate = gate.rows();
    }
    return LoadMatrix(stacked, &out->projection);
  }

  absl::Status LoadFeedForward(const LayerTensors& tensors, LayerWeights* out) {
    if (!tensors.router.empty()) {
      // The router's arithmetic is f32 whatever the checkpoint's dtype.
      if (absl::Status status = LoadMatrix({&tensors.router[0]}, &out->router, /*as_f32=*/true);
          !status.ok()) {
        return status;
      }
    }
    for (const FeedForwardTensors& feed_forward : tensors.feed_forward) {
      Matrix gate_up, down;
      if (absl::Status status = LoadMatrix({&feed_forward.gate, &feed_forward.up}, &gate_up);
          !status.ok()) {
        return status;
      }
      if (absl::Status status = LoadMatrix({&feed_forward.down}, &down); !status.ok()) {
        return status;
      }
      out->gate_up.push_back(std::move(gate_up));
      out->down.push_back(std::move(down));
    }
    return absl::OkStatus();
  }

  absl::Status LoadMatrix(const std::vector<const TensorSpec*>& specs, Matrix* out,
                          bool as_f32 = false) {
    const absl::StatusOr<std::vector<TensorView>> parts = Read(specs, as_f32);
    if (!parts.ok()) return parts.status();
    for (const TensorSpec* spec : specs) weights_.num_parameters += spec->num_elements();
    return Pack(*parts, out);
  }

  absl::Status Pack(const std::vector<TensorView>& parts, Matrix* out) {
    if (measuring_) {
      kernels::PackedMatrixShape shape = {.in_features = parts[0].cols, .dtype = parts[0].dtype};
      for (const TensorView& part : parts) shape.out_features += part.rows;
      const absl::StatusOr<size_t> bytes = kernels::PackedMatrixBytes(device_, shape);
      if (bytes.ok()) weights_.bytes += *bytes;
      return bytes.status();
    }
    absl::StatusOr<Matrix> packed = kernels::PackMatrix(device_, parts);
    if (!packed.ok()) return packed.status();
    *out = *std::move(packed);
    weights_.bytes += (*out)->size_bytes();
    return absl::OkStatus();
  }

  absl::Status LoadVector(const TensorSpec& spec, Buffer* out) {
    const absl::StatusOr<std::vector<TensorView>> parts = Read({&spec}, /*as_f32=*/true);
    if (!parts.ok()) return parts.status();
    weights_.num_parameters += spec.num_elements();
    return ToDevice((*parts)[0].data, spec.num_elements() * sizeof(float), out);
  }

  absl::Status MakeInvFreq(const AttentionShape& shape, Buffer* out) {
    std::vector<double> inv_freq(shape.rotary_dim / 2);
    for (size_t i = 0; i < inv_freq.size(); ++i) {
      inv_freq[i] = std::pow(shape.rope_theta, -2.0 * static_cast<double>(i) / shape.rotary_dim);
    }
    return ToDevice(inv_freq.data(), inv_freq.size() * sizeof(double), out);
  }

  absl::Status ToDevice(const void* host, size_t bytes, Buffer* out) {
    if (bytes == 0) return absl::OkStatus();
    weights_.bytes += bytes;
    if (measuring_) return absl::OkStatus();
    absl::StatusOr<Buffer> buffer = device_.Allocate(bytes);
    if (!buffer.ok()) return buffer.status();
    *out = *std::move(buffer);
    return device_.CopyToDevice(out->data(), host, bytes);
  }

  tensor::Device& device_;
  const ModelConfig& config_;
  TensorSource& source_;
  const bool measuring_;
  HostStack stack_;
  ModelWeights weights_;
};

}  // namespace

absl::StatusOr<size_t> WeightBytes(tensor::Device& device, const ModelConfig& config,
                                   TensorSource& source) {
  const absl::StatusOr<ModelWeights> measured =
      Loader(device, config, source, /*measuring=*/true).Run();
  if (!measured.ok()) return measured.status();
  return measured->bytes;
}

absl::StatusOr<ModelWeights> LoadWeights(tensor::Device& device, const ModelConfig& config,
                                         TensorSource& source) {
  return Loader(device, config, source, /*measuring=*/false).Run();
}

}  // namespace hyserve::model
