// One safetensors file on disk: reading by tensor, and writing in one pass.
#ifndef HYSERVE_ENGINE_MODEL_SAFETENSORS_H_
#define HYSERVE_ENGINE_MODEL_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/file.h"
#include "engine/model/safetensors_header.h"

namespace hyserve::model {

// Immutable after Open; reading is thread-safe.
class SafetensorsFile {
 public:
  // `name` is the file for messages. Errors of InputFile::Open and of the header.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path, std::string name);

  const std::string& name() const { return file_.name(); }
  const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  // Null when there is no such tensor.
  const TensorEntry* Find(std::string_view name) const;

  // The bytes of a tensor of this file into `out`, which has room for end - begin of them.
  absl::Status Read(const TensorEntry& entry, void* out) const;

  // DATA_LOSS when the file changed since Open.
  absl::Status CheckUnchanged() const { return file_.CheckUnchanged(); }

 private:
  InputFile file_;
  uint64_t data_start_ = 0;
  SafetensorsHeader header_;
  std::map<std::string_view, size_t> index_;  // into header_.tensors, whose names it points to
};

// Writes a new file: the header first, then the tensors' bytes in the order of Create.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    std::string_view dtype;  // "F32", "BF16", "F16", "I32"
    int element_bytes = 0;
    std::vector<int64_t> shape;
  };
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path, std::string name,
                                                  const std::vector<Tensor>& tensors);
  // REQUIRES: in all, exactly the bytes that the header announced.
  absl::Status Append(const void* data, uint64_t bytes) { return file_.Write(data, bytes); }
  absl::Status Finish() { return file_.Finish(); }

 private:
  explicit SafetensorsWriter(OutputFile file) : file_(std::move(file)) {}

  OutputFile file_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_SAFETENSORS_H_
