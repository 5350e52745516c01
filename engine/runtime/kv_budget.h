// How the memory for cached state is divided into blocks and slabs.
#ifndef HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_
#define HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/runtime/engine.h"
#include "engine/tensor/device.h"

namespace hyserve::runtime {

struct KvBudget {
  int64_t num_blocks = 0;
  int64_t num_slabs = 0;       // 0 without window layers
  int64_t snapshot_slabs = 0;  // of these, the prefix cache's
};

// Memory for blocks and slabs: what the options say, or their share of what the device has free
// now. INVALID_ARGUMENT for a share of a device that does not know (Device::FreeBytes).
absl::StatusOr<int64_t> KvMemoryBytes(const EngineOptions& options, const tensor::Device& device);

// Slabs first (max_sequences, and snapshot_slabs when the prefix cache is on), the rest blocks.
// INVALID_ARGUMENT when not even the blocks of one 64-token sequence remain.
absl::StatusOr<KvBudget> DivideKvMemory(const EngineOptions& options, int64_t kv_memory_bytes,
                                        const kv_cache::KvLayout& layout);

// INVALID_ARGUMENT with every violated rule.
absl::Status ValidateOptions(const EngineOptions& options);

}  // namespace hyserve::runtime

#endif  // HYSERVE_ENGINE_RUNTIME_KV_BUDGET_H_
