#include "engine/model/inspect.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/strings.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/layout.h"
#include "engine/model/tensor_plan.h"

namespace hyserve::model {
namespace {

using kv_cache::KvLayout;

constexpr int64_t kDefaultHandoffTokens[] = {1 << 10, 1 << 15, 1 << 17, 1 << 20};

char Letter(LayerKind kind) {
  switch (kind) {
    case LayerKind::kFull: return 'F';
    case LayerKind::kSliding: return 'W';
    case LayerKind::kSparse: return 'S';
  }
  return '?';
}

// 819200 -> "819,200".
std::string Grouped(int64_t value) {
  const std::string digits = StrCat(value);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string Billions(int64_t count) {
  return count >= 1'000'000'000 ? absl::StrFormat("%.2f B", count / 1e9)
                                : absl::StrFormat("%.1f M", count / 1e6);
}

std::string Bytes(int64_t bytes) {
  if (bytes >= 1'000'000'000) return absl::StrFormat("%.2f GB", bytes / 1e9);
  if (bytes >= 1'000'000) return absl::StrFormat("%.1f MB", bytes / 1e6);
  return StrCat(Grouped(bytes), " B");
}

std::string ShapeText(const AttentionShape& shape) {
  return absl::StrFormat("%d query heads, %d KV heads, K %d, V %d, %d rotary dims, base %g",
                         shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.v_head_dim,
                         shape.rotary_dim, shape.rope_theta);
}

class Report {
 public:
  template <typename... Parts>
  void Line(std::string_view name, const Parts&... parts) {
    text_ += StrCat(absl::StrFormat("%-22s", std::string(name)), parts..., "\n");
  }
  std::string Take() { return std::move(text_); }

 private:
  std::string text_;
};

void DescribeNet(const ModelConfig& config, const InspectOptions& options, Report* report) {
  const ParameterCounts counts = CountParameters(config);
  report->Line("layers", config.num_layers(), ": ", LayerPlanText(config));
  report->Line("hidden, vocabulary", config.hidden_size, ", ", config.vocab_size);
  report->Line("attention", ShapeText(config.full));
  if (std::any_of(config.layers.begin(), config.layers.end(),
                  [](const LayerSpec& layer) { return layer.kind == LayerKind::kSliding; })) {
    report->Line("sliding attention", ShapeText(config.sliding));
  }
  if (config.sparse_topk_tokens > 0) {
    report->Line("selection", config.selected_blocks(), " blocks of ", config.sparse_block_size,
                 " tokens per row and KV head");
  }
  if (config.sliding_window > 0) report->Line("window", config.sliding_window, " tokens");
  if (config.num_experts > 0) {
    report->Line("experts", config.num_experts, ", ", config.experts_per_token, " a token");
  }
  report->Line("context", Grouped(config.max_position_embeddings), " tokens");
  report->Line("parameters", Billions(counts.total), ", ", Billions(counts.active),
               " active per token");
  report->Line("weights",
               Bytes(counts.total * static_cast<int64_t>(tensor::SizeOf(options.weight_dtype))),
               " in ", std::string(tensor::Name(options.weight_dtype)));
}

void DescribeHandoff(const ModelConfig& config, const InspectOptions& options, Report* report) {
  const KvLayout layout = MakeKvLayout(config, options.kv_dtype, "");
  const int64_t per_token = PageValuesPerToken(config) * tensor::SizeOf(options.kv_dtype);
  report->Line("KV per token", Grouped(per_token), " B in ",
               std::string(tensor::Name(options.kv_dtype)));
  report->Line("KV block", Grouped(layout.block_bytes()), " B (", KvLayout::NumBlocks(1) * 64,
               " tokens)");
  report->Line("window slab", Grouped(layout.slab_bytes), " B per sequence");
  report->Line("selection shipped", Grouped(layout.selection_bytes()), " B per hand-off");
  const std::span<const int64_t> lengths =
      options.handoff_tokens.empty() ? std::span<const int64_t>(kDefaultHandoffTokens)
                                     : options.handoff_tokens;
  for (const int64_t tokens : lengths) {
    const int64_t shipped = layout.HandoffBytes(tokens);
    const int64_t full = layout.FullAttentionBytes(tokens);
    report->Line(StrCat("hand-off of ", Grouped(tokens)), Bytes(shipped),
                 "; full attention would ship ", Bytes(full), ", ",
                 absl::StrFormat("%.2f", static_cast<double>(full) / static_cast<double>(shipped)),
                 " times as much");
  }
}

}  // namespace

ParameterCounts CountParameters(const ModelConfig& config) {
  ParameterCounts counts;
  const auto add = [&](const TensorSpec& spec, bool active) {
    counts.total += spec.num_elements();
    if (active) counts.active += spec.num_elements();
  };
  const auto add_all = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) add(spec, true);
  };
  add(EmbeddingTensor(config), config.tie_word_embeddings);
  if (!config.tie_word_embeddings) add(OutputTensor(config), true);
  add(FinalNormTensor(config), true);
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const LayerTensors tensors = TensorsOfLayer(config, layer);
    for (const TensorSpec* spec :
         {&tensors.input_norm, &tensors.post_attention_norm, &tensors.q, &tensors.k, &tensors.v,
          &tensors.o}) {
      add(*spec, true);
    }
    for (const auto* specs : {&tensors.window_gate, &tensors.sparse_gate, &tensors.window_sink,
                              &tensors.sparse_sink, &tensors.router, &tensors.router_bias}) {
      add_all(*specs);
    }
    // Experts are alike, so the first few stand for those that a token chooses.
    const int num_active = config.layers[layer].is_moe ? config.experts_per_token : 1;
    int index = 0;
    for (const FeedForwardTensors& feed_forward : tensors.feed_forward) {
      const bool active = index++ < num_active;
      add(feed_forward.gate, active);
      add(feed_forward.up, active);
      add(feed_forward.down, active);
    }
  }
  return counts;
}

std::string LayerPlanText(const ModelConfig& config) {
  std::string text;
  for (int begin = 0; begin < config.num_layers();) {
    int end = begin;
    while (end < config.num_layers() && config.layers[end].kind == config.layers[begin].kind) ++end;
    if (!text.empty()) text += ' ';
    if (end - begin > 1) text += StrCat(end - begin);
    text += Letter(config.layers[begin].kind);
    begin = end;
  }
  return text;
}

int64_t PageValuesPerToken(const ModelConfig& config) {
  const int64_t num_full =
      std::count_if(config.layers.begin(), config.layers.end(),
                    [](const LayerSpec& layer) { return layer.kind == LayerKind::kFull; });
  return num_full * config.full.num_kv_heads * (config.full.head_dim + config.full.v_head_dim);
}

int64_t RingValues(const ModelConfig& config) {
  int64_t values = 0;
  for (const LayerSpec& layer : config.layers) {
    if (layer.kind == LayerKind::kFull) continue;
    const AttentionShape& shape = config.shape(layer.kind);
    values += int64_t{config.sliding_window} * shape.num_kv_heads *
              (shape.head_dim + shape.v_head_dim);
  }
  return values;
}

std::string InspectText(const ModelConfig& config, const InspectOptions& options) {
  Report report;
  DescribeNet(config, options, &report);
  DescribeHandoff(config, options, &report);
  return report.Take();
}

}  // namespace hyserve::model
