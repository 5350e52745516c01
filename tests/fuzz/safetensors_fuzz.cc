// A safetensors file from anyone: refused with one line, or a header whose tensors cover the data
// exactly.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/model/safetensors_header.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void RequireOneLine(const absl::Status& status) {
  Require(status.message().size() > 4);
  Require(status.message().find('\n') == absl::string_view::npos);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hyserve::model;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto header_bytes = SafetensorsHeaderBytes(file.substr(0, 8), size, "fuzz");
  if (!header_bytes.ok()) {
    RequireOneLine(header_bytes.status());
    return 0;
  }
  Require(*header_bytes <= size - 8);
  const uint64_t data_bytes = size - 8 - *header_bytes;
  const auto header = ParseSafetensorsHeader(file.substr(8, *header_bytes), data_bytes, "fuzz");
  if (!header.ok()) {
    RequireOneLine(header.status());
    return 0;
  }
  uint64_t covered = 0;
  for (const TensorEntry& entry : header->tensors) {
    Require(entry.begin == covered);
    Require(entry.shape.size() <= 8);
    uint64_t bytes = static_cast<uint64_t>(entry.element_bytes);
    for (const int64_t dim : entry.shape) {
      Require(dim >= 1);
      bytes *= static_cast<uint64_t>(dim);
    }
    Require(entry.end - entry.begin == bytes);
    covered = entry.end;
  }
  Require(covered == data_bytes);
  return 0;
}
