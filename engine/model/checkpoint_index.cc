#include "engine/model/checkpoint_index.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <memory>

#include "base/strings.h"
#include "engine/model/file.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

using nlohmann::json;

constexpr JsonLimits kIndexLimits = {.max_bytes = size_t{64} << 20, .max_depth = 8};

bool IsPlainShardName(std::string_view name) {
  if (name.empty() || name.size() > 255 || name[0] == '.') return false;
  if (!name.ends_with(".safetensors")) return false;
  for (const unsigned char c : name) {
    if (c < 0x20 || c == 0x7f || c == '/' || c == '\\') return false;
  }
  return true;
}

// Empty when realpath fails; errno then says why.
std::string RealPath(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> resolved(realpath(path.c_str(), nullptr),
                                                             &std::free);
  return resolved == nullptr ? "" : resolved.get();
}

}  // namespace

absl::StatusOr<CheckpointIndex> ParseCheckpointIndex(std::string_view text,
                                                     std::string_view name) {
  const absl::StatusOr<json> root = ParseJsonObject(text, name, kIndexLimits);
  if (!root.ok()) return root.status();
  const auto refuse = [&](const auto&... reason) {
    return absl::InvalidArgumentError(StrCat(name, ": ", reason...));
  };
  CheckpointIndex index;
  const auto map = root->find("weight_map");
  if (map == root->end() || !map->is_object() || map->empty()) {
    return refuse("weight_map: must be an object that maps tensors to files");
  }
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      return refuse("weight_map: tensor \"", Printable(tensor), "\": must name a file");
    }
    const std::string& file = shard.get_ref<const std::string&>();
    if (!IsPlainShardName(file)) {
      return refuse("weight_map: tensor \"", Printable(tensor), "\": \"", Printable(file),
                    "\" is not a plain file name ending in .safetensors");
    }
    index.shard_of.emplace(tensor, file);
  }
  if (const auto metadata = root->find("metadata"); metadata != root->end()) {
    if (!metadata->is_object()) return refuse("metadata: must be an object");
    const auto total = metadata->find("total_size");
    if (total != metadata->end()) {
      if (!total->is_number_unsigned()) {
        return refuse("metadata.total_size: must be a number of bytes");
      }
      index.total_size = total->get<uint64_t>();
    }
  }
  return index;
}

absl::StatusOr<std::string> ResolveShard(const std::string& directory, const std::string& shard) {
  const std::string root = RealPath(directory);
  if (root.empty()) return FileError(errno, directory, "resolve");
  const std::string path = RealPath(StrCat(directory, "/", shard));
  if (path.empty()) return FileError(errno, shard, "open");
  const std::string prefix = root == "/" ? root : StrCat(root, "/");
  if (!path.starts_with(prefix) || path.find('/', prefix.size()) != std::string::npos) {
    return absl::InvalidArgumentError(
        StrCat(shard, ": a symbolic link that leads out of the checkpoint's directory"));
  }
  return path;
}

}  // namespace hyserve::model
