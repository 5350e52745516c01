// How a device's memory is divided: workspaces, then cached state, in blocks and slabs.
#ifndef HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_
#define HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/model/model.h"
#include "engine/runtime/engine.h"
#include "engine/tensor/device.h"

namespace hyserve::runtime {

struct KvBudget {
  int64_t num_blocks = 0;
  int64_t num_slabs = 0;       // 0 without window layers
  int64_t snapshot_slabs = 0;  // of these, the prefix cache's
};

// Of what the device has free once weights are loaded: first the workspaces of the largest step
// (Model::ReserveWorkspaces), then the pool, as a size or a share of what is left. kSpareBytes stay
// free in any case. `limits`: of the steps that the options allow; contexts that no pool of theirs
// could hold are left out.
//
// On a device that does not know what it has free (the CPU) nothing is reserved: its memory costs
// nothing before it is used, and a small machine should not pay for a step that it never makes.
//
// RESOURCE_EXHAUSTED: workspaces or a size that do not fit, with what there is. INVALID_ARGUMENT: a
// share of a device that does not know, or memory that DivideKvMemory refuses.
absl::StatusOr<KvBudget> PlanKvMemory(const EngineOptions& options, model::StepLimits limits,
                                      const tensor::Device& device, model::Model& model);

// For what takes device memory without asking: CUDA graphs of recorded steps (up to 64), kernels
// that the driver loads when they are first launched, the transport.
inline constexpr int64_t kSpareBytes = int64_t{1} << 30;

// Slabs first (max_sequences, and snapshot_slabs when the prefix cache is on), the rest blocks.
// INVALID_ARGUMENT when not even the blocks of one 64-token sequence remain.
absl::StatusOr<KvBudget> DivideKvMemory(const EngineOptions& options, int64_t kv_memory_bytes,
                                        const kv_cache::KvLayout& layout);

// INVALID_ARGUMENT with every violated rule.
absl::Status ValidateOptions(const EngineOptions& options);

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_
