// The header of a safetensors file: 8 bytes of length, a JSON object, then the data.
//
// The format is read strictly: what the format forbids and lenient readers let through (holes,
// overlaps, duplicate names, trailing bytes) is refused, because two readers that disagree about a
// file are a way to hide something in it.
#ifndef HYSERVE_ENGINE_MODEL_SAFETENSORS_HEADER_H_
#define HYSERVE_ENGINE_MODEL_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::model {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr uint64_t kSafetensorsLengthBytes = 8;

struct TensorEntry {
  std::string name;
  std::string_view dtype;  // "BF16"; static storage
  int element_bytes = 0;
  std::vector<int64_t> shape;  // rank <= 8, every dim >= 1; empty for a scalar
  // Within the data section: end - begin = elements * element_bytes.
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of their data, which they cover without a gap
  std::map<std::string, std::string> metadata;
};

// Length of the JSON, from the first 8 bytes of a file of `file_bytes`. INVALID_ARGUMENT when it
// cannot be right. REQUIRES: prefix has 8 bytes, unless the file has fewer.
absl::StatusOr<uint64_t> SafetensorsHeaderBytes(std::string_view prefix, uint64_t file_bytes,
                                                std::string_view file);

// `data_bytes`: what follows the header. INVALID_ARGUMENT, one line: file, tensor, reason.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         uint64_t data_bytes,
                                                         std::string_view file);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_SAFETENSORS_HEADER_H_
