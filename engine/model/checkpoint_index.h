// model.safetensors.index.json: which shard holds which tensor.
#ifndef HYSERVE_ENGINE_MODEL_CHECKPOINT_INDEX_H_
#define HYSERVE_ENGINE_MODEL_CHECKPOINT_INDEX_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::model {

inline constexpr std::string_view kIndexFileName = "model.safetensors.index.json";

struct CheckpointIndex {
  std::map<std::string, std::string> shard_of;  // by tensor
  std::optional<uint64_t> total_size;           // bytes of all tensors, when it is given
};

// INVALID_ARGUMENT, one line: JSON faults, no weight_map, a shard whose name is not a plain file
// name ending in ".safetensors".
absl::StatusOr<CheckpointIndex> ParseCheckpointIndex(std::string_view json, std::string_view name);

// The path of `shard` in `directory`, with symbolic links resolved. INVALID_ARGUMENT when that
// leads out of the directory, NOT_FOUND when there is no such file.
absl::StatusOr<std::string> ResolveShard(const std::string& directory, const std::string& shard);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CHECKPOINT_INDEX_H_
