#include "engine/runtime/kv_budget.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hyserve::runtime {

namespace {

// Stays free beside a share: for workspaces, which grow with the first steps.
constexpr int64_t kSpareBytes = int64_t{1} << 30;

}  // namespace

absl::StatusOr<int64_t> KvMemoryBytes(const EngineOptions& options, const tensor::Device& device) {
  if (options.kv_memory_share == 0) return options.kv_memory_bytes;
  const absl::StatusOr<size_t> free = device.FreeBytes();
  if (!free.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_memory: give a size: ", free.status().message()));
  }
  const int64_t free_bytes = static_cast<int64_t>(*free);
  const int64_t share = static_cast<int64_t>(static_cast<double>(free_bytes) *
                                             options.kv_memory_share);
  return std::max<int64_t>(std::min(share, free_bytes - kSpareBytes), 0);
}

absl::StatusOr<KvBudget> DivideKvMemory(const EngineOptions& options, int64_t kv_memory_bytes,
                                        const kv_cache::KvLayout& layout) {
  KvBudget budget;
  if (layout.slab_bytes > 0) {
    budget.snapshot_slabs = options.prefix_cache ? options.snapshot_slabs : 0;
    budget.num_slabs = options.max_sequences + budget.snapshot_slabs;
  }
  const int64_t slab_bytes = budget.num_slabs * static_cast<int64_t>(layout.slab_bytes);
  const int64_t block_bytes = static_cast<int64_t>(layout.block_bytes());
  if (block_bytes <= 0) return absl::InvalidArgumentError("the KV layout has no full layer");
  budget.num_blocks = std::min<int64_t>(std::max<int64_t>(kv_memory_bytes - slab_bytes, 0) /
                                            block_bytes,
                                        std::numeric_limits<int32_t>::max());
  if (budget.num_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_memory_bytes: ", kv_memory_bytes, " do not suffice: ", budget.num_slabs,
        " slabs take ", slab_bytes, " and one block takes ", block_bytes,
        "; give more memory or fewer max_sequences or snapshot_slabs"));
  }
  return budget;
}

absl::Status ValidateOptions(const EngineOptions& options) {
  std::vector<std::string> violations;
  auto require = [&violations](bool holds, const char* rule, int64_t value) {
    if (!holds) violations.push_back(absl::StrCat(rule, "; got ", value));
  };
  require(options.kv_memory_bytes > 0, "kv_memory_bytes: must be positive",
          options.kv_memory_bytes);
  if (!(options.kv_memory_share >= 0 && options.kv_memory_share <= 1)) {
    violations.push_back(
        absl::StrCat("kv_memory_share: must be in [0, 1]; got ", options.kv_memory_share));
  }
  require(options.max_context_tokens >= 0 && options.max_context_tokens <= INT32_MAX,
          "max_context_tokens: must be in [0, 2147483647]", options.max_context_tokens);
  require(options.max_sequences >= 1 && options.max_sequences <= 65536,
          "max_sequences: must be in [1, 65536]", options.max_sequences);
  require(options.chunk_tokens >= kv_cache::kTokensPerBlock && options.chunk_tokens <= 1 << 20 &&
              options.chunk_tokens % kv_cache::kTokensPerBlock == 0,
          "chunk_tokens: must be a multiple of 64 in [64, 1048576]", options.chunk_tokens);
  require(options.max_queue >= 1, "max_queue: must be at least 1", options.max_queue);
  require(options.snapshot_interval_tokens >= 0 &&
              options.snapshot_interval_tokens % kv_cache::kTokensPerBlock == 0,
          "snapshot_interval_tokens: must be a multiple of 64, or 0",
          options.snapshot_interval_tokens);
  require(options.snapshot_slabs >= 0 && options.snapshot_slabs <= 65536,
          "snapshot_slabs: must be in [0, 65536]", options.snapshot_slabs);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

}  // namespace hyserve::runtime
