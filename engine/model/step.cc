#include "engine/model/step.h"

#include <algorithm>
#include <iterator>

#include "base/strings.h"

namespace hyserve::model {
namespace {

template <typename Range, typename Value>
int IndexOf(const Range& range, const Value& value) {
  const auto found = std::find(range.begin(), range.end(), value);
  return found == range.end() ? -1 : static_cast<int>(std::distance(range.begin(), found));
}

absl::Status CheckSequence(size_t index, const SequenceRows& sequence, const ModelConfig& config,
                           const attention::KvPool& pool) {
  const auto refuse = [&](const auto&... reason) {
    return absl::InvalidArgumentError(StrCat("step: sequence ", index, ": ", reason...));
  };
  for (const int32_t id : sequence.token_ids) {
    if (id < 0 || id >= config.vocab_size) return refuse("token id ", id, " is out of range");
  }
  if (sequence.token_ids.empty()) return refuse("no rows");
  const int64_t context =
      int64_t{sequence.first_position} + static_cast<int64_t>(sequence.token_ids.size());
  if (sequence.first_position < 0 || context > config.max_position_embeddings) {
    return refuse("positions ", sequence.first_position, " to ", context - 1,
                  " exceed max_position_embeddings ", config.max_position_embeddings);
  }
  const size_t needed = static_cast<size_t>(kv_cache::KvLayout::NumBlocks(context));
  if (sequence.blocks.size() < needed) {
    return refuse(context, " tokens need ", needed, " blocks; has ", sequence.blocks.size());
  }
  for (const int32_t block : sequence.blocks.first(needed)) {
    if (block < 0 || block >= pool.num_blocks()) return refuse("no block ", block, " in the pool");
  }
  if (pool.layout().slab_bytes > 0 &&
      (sequence.slab < 0 || sequence.slab >= pool.num_slabs())) {
    return refuse("no slab ", sequence.slab, " in the pool");
  }
  return absl::OkStatus();
}

int64_t NumLogitRows(const SequenceRows& sequence) {
  switch (sequence.logits) {
    case SequenceRows::Logits::kNone: return 0;
    case SequenceRows::Logits::kLast: return 1;
    case SequenceRows::Logits::kAll: break;
  }
  return static_cast<int64_t>(sequence.token_ids.size());
}

absl::Status CheckSamples(const StepInput& input, const ModelConfig& config) {
  int64_t num_rows = 0, num_samples = 0;
  for (size_t s = 0; s < input.sequences.size(); ++s) {
    const SequenceRows& sequence = input.sequences[s];
    const auto refuse = [&](const auto&... reason) {
      return absl::InvalidArgumentError(StrCat("step: sequence ", s, ": ", reason...));
    };
    const int64_t samples = static_cast<int64_t>(sequence.samples.size());
    if (samples > 0 && samples != NumLogitRows(sequence)) {
      return refuse(samples, " samples for ", NumLogitRows(sequence), " rows of logits");
    }
    num_rows += NumLogitRows(sequence);
    num_samples += samples;
    for (const kernels::SampleRow& sample : sequence.samples) {
      if (sample.given_token >= config.vocab_size) {
        return refuse("given token ", sample.given_token, " is out of range");
      }
      if (sample.num_logprobs > kernels::kMaxTopLogprobs) {
        return refuse(sample.num_logprobs, " log-probabilities; at most ",
                      kernels::kMaxTopLogprobs);
      }
      if (sample.first_edit < 0 || sample.num_edits < 0 ||
          int64_t{sample.first_edit} + sample.num_edits >
              static_cast<int64_t>(input.edits.size())) {
        return refuse("edits ", sample.first_edit, " + ", sample.num_edits, " of ",
                      input.edits.size());
      }
    }
  }
  for (const kernels::LogitEdit& edit : input.edits) {
    if (edit.token_id < 0 || edit.token_id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          StrCat("step: edit of token ", edit.token_id, ", which is out of range"));
    }
  }
  if (num_samples != 0 && num_samples != num_rows) {
    return absl::InvalidArgumentError(
        StrCat("step: ", num_samples, " samples for ", num_rows, " rows of logits"));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<LayerSlots> SlotsOfLayers(const ModelConfig& config,
                                      const kv_cache::KvLayout& layout) {
  std::vector<LayerSlots> all;
  for (int i = 0; i < config.num_layers(); ++i) {
    const LayerSpec& layer = config.layers[i];
    LayerSlots slots;
    const int full_layer = layer.kind == LayerKind::kFull ? i : layer.kv_source_layer;
    slots.layer_slot = IndexOf(layout.full_layers, full_layer);
    if (slots.layer_slot >= 0) slots.oracle = IndexOf(layout.oracle_slots, slots.layer_slot);
    const auto ring = std::find_if(layout.rings.begin(), layout.rings.end(),
                                   [&](const auto& r) { return r.layer_index == i; });
    if (ring != layout.rings.end()) {
      slots.ring = static_cast<int>(std::distance(layout.rings.begin(), ring));
    }
    all.push_back(slots);
  }
  return all;
}

absl::Status CheckStepInput(const StepInput& input, const ModelConfig& config,
                            const attention::KvPool& pool) {
  if (input.sequences.empty()) return absl::InvalidArgumentError("step: no sequences");
  for (size_t s = 0; s < input.sequences.size(); ++s) {
    if (absl::Status status = CheckSequence(s, input.sequences[s], config, pool); !status.ok()) {
      return status;
    }
  }
  return CheckSamples(input, config);
}

absl::Status AnnounceReadyLayers(StepContext& step) {
  while (!step.pending_layers.empty()) {
    const int64_t marker = step.pending_layers.front().marker;
    if (step.pending_layers.size() >= tensor::Device::kMarkers) {
      if (absl::Status status = step.device.WaitFor(marker); !status.ok()) return status;
    }
    const absl::StatusOr<bool> reached = step.device.Reached(marker);
    if (!reached.ok()) return reached.status();
    if (!*reached) break;
    step.on_layer_kv_ready(step.pending_layers.front().layer_slot);
    step.pending_layers.pop_front();
  }
  return absl::OkStatus();
}

absl::Status AnnounceAllLayers(StepContext& step) {
  while (!step.pending_layers.empty()) {
    const StepContext::PendingLayer layer = step.pending_layers.front();
    if (absl::Status status = step.device.WaitFor(layer.marker); !status.ok()) return status;
    step.on_layer_kv_ready(layer.layer_slot);
    step.pending_layers.pop_front();
  }
  return absl::OkStatus();
}

}  // namespace hyserve::model
