// What every layer of one step needs. Pointers are to things that outlive the step.
#ifndef HYSERVE_ENGINE_MODEL_STEP_H_
#define HYSERVE_ENGINE_MODEL_STEP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/attention/attention_plan.h"
#include "engine/attention/kv_pool.h"
#include "engine/attention/staged_array.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/config.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/model/workspace.h"
#include "engine/tensor/device.h"

namespace hyserve::model {

// Where the cached state and the selection of a layer are; -1 where it has none.
struct LayerSlots {
  int layer_slot = -1;  // position in KvLayout::full_layers, of the layer itself or of its source
  int ring = -1;        // position in KvLayout::rings
  int oracle = -1;      // position in KvLayout::oracle_slots, of the layer itself or of its source
};
std::vector<LayerSlots> SlotsOfLayers(const ModelConfig& config,
                                      const kv_cache::KvLayout& layout);

struct StepContext {
  tensor::Device& device;
  const ModelConfig& config;
  const ModelWeights& weights;
  const std::vector<LayerSlots>& slots;
  attention::KvPool& pool;
  Workspace& workspace;
  const std::function<void(int layer_slot)>& on_layer_kv_ready;

  // All rows of the step.
  const kernels::AttentionBatch& batch;
  // The rows whose logits are wanted, as a batch of its own, and their numbers among all rows
  // (device). When it is every row, `chosen_is_all` and nothing need be gathered.
  const kernels::AttentionBatch& chosen_batch;
  const int32_t* chosen_rows = nullptr;
  bool chosen_is_all = false;
  int64_t num_chosen() const { return chosen_batch.num_rows; }

  // [num_rows][kv heads][selected_blocks] of each oracle, filled as the layers run.
  std::vector<int32_t*> selections = {};

  // Full layers whose keys and values are enqueued but not announced yet.
  struct PendingLayer {
    int layer_slot = 0;
    int64_t marker = 0;
  };
  std::deque<PendingLayer> pending_layers = {};
};

// Calls on_layer_kv_ready for the layers whose keys and values are final by now, in order.
absl::Status AnnounceReadyLayers(StepContext& step);
// Waits for the others too.
absl::Status AnnounceAllLayers(StepContext& step);

// INVALID_ARGUMENT for what would make an op read or write out of bounds: token ids, positions,
// blocks and slabs outside of the model's and the pool's ranges, samples that are not one for each
// row of logits or refer to what is not there, or no rows at all.
absl::Status CheckStepInput(const StepInput& input, const ModelConfig& config,
                            const attention::KvPool& pool);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_STEP_H_
