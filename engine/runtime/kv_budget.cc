#include "engine/runtime/kv_budget.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/strings.h"

namespace hyserve::runtime {

namespace {

constexpr char kLower[] = "lower chunk_tokens or max_context_tokens";

// Of so many free bytes.
int64_t PoolBytes(const EngineOptions& options, int64_t free_bytes) {
  if (options.kv_memory_share == 0) return options.kv_memory_bytes;
  const auto share =
      static_cast<int64_t>(static_cast<double>(free_bytes) * options.kv_memory_share);
  return std::max<int64_t>(std::min(share, free_bytes - kSpareBytes), 0);
}

absl::StatusOr<int64_t> FreeBytes(const tensor::Device& device) {
  const absl::StatusOr<size_t> free = device.FreeBytes();
  if (!free.ok()) return free.status();
  return static_cast<int64_t>(*free);
}

absl::Status WithContext(const absl::Status& status, const std::string& before,
                         const std::string& after) {
  return absl::Status(status.code(), StrCat(before, ToStd(status.message()), after));
}

}  // namespace

absl::StatusOr<KvBudget> PlanKvMemory(const EngineOptions& options, model::StepLimits limits,
                                      const tensor::Device& device, model::Model& model) {
  const kv_cache::KvLayout& layout = model.layout();
  const absl::StatusOr<int64_t> loaded = FreeBytes(device);
  if (absl::IsUnimplemented(loaded.status())) {
    if (options.kv_memory_share == 0) {
      return DivideKvMemory(options, options.kv_memory_bytes, layout);
    }
    return absl::InvalidArgumentError(
        StrCat("kv_memory: give a size: ", ToStd(loaded.status().message())));
  }
  if (!loaded.ok()) return loaded.status();
  const auto free_beside = [&](int64_t free_bytes, const std::string& workspaces) {
    return StrCat("; ", device.Description(), " has ", BytesText(free_bytes), " free beside ",
                  BytesText(model.weight_bytes()), " of weights", workspaces);
  };

  const absl::StatusOr<KvBudget> most =
      DivideKvMemory(options, PoolBytes(options, *loaded), layout);
  if (!most.ok()) return WithContext(most.status(), "", free_beside(*loaded, ""));
  limits.context_tokens =
      std::min(limits.context_tokens, most->num_blocks * kv_cache::kTokensPerBlock);
  if (absl::Status status = model.ReserveWorkspaces(limits); !status.ok()) {
    return WithContext(status,
                       StrCat("workspaces for steps of ", limits.num_rows,
                              " rows and contexts of ", limits.context_tokens, " tokens: "),
                       StrCat(free_beside(*loaded, ""), "; ", kLower));
  }

  const absl::StatusOr<int64_t> free = FreeBytes(device);
  if (!free.ok()) return free.status();
  const int64_t workspace_bytes = std::max<int64_t>(*loaded - *free, 0);
  const std::string free_text =
      free_beside(*free, StrCat(" and ", BytesText(workspace_bytes), " of workspaces, and ",
                                BytesText(kSpareBytes), " of it must stay free"));
  const int64_t pool_bytes = PoolBytes(options, *free);
  if (pool_bytes > *free - kSpareBytes && pool_bytes > 0) {
    return absl::ResourceExhaustedError(
        StrCat("kv_memory: ", BytesText(pool_bytes), " do not fit", free_text,
               "; give less, or ", kLower));
  }
  const absl::StatusOr<KvBudget> budget = DivideKvMemory(options, pool_bytes, layout);
  return budget.ok() ? budget : WithContext(budget.status(), "", free_text);
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
