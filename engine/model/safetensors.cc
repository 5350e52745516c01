#include "engine/model/safetensors.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path, std::string name) {
  absl::StatusOr<InputFile> opened = InputFile::Open(path, std::move(name));
  if (!opened.ok()) return opened.status();
  SafetensorsFile file;
  file.file_ = *std::move(opened);
  const uint64_t file_bytes = file.file_.size_bytes();

  std::string prefix(file_bytes < kSafetensorsLengthBytes ? 0 : kSafetensorsLengthBytes, '\0');
  if (absl::Status status = file.file_.Read(0, prefix.data(), prefix.size()); !status.ok()) {
    return status;
  }
  const absl::StatusOr<uint64_t> header_bytes =
      SafetensorsHeaderBytes(prefix, file_bytes, file.name());
  if (!header_bytes.ok()) return header_bytes.status();

  std::string json(*header_bytes, '\0');
  if (absl::Status status =
          file.file_.Read(kSafetensorsLengthBytes, json.data(), json.size());
      !status.ok()) {
    return status;
  }
  file.data_start_ = kSafetensorsLengthBytes + *header_bytes;
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(json, file_bytes - file.data_start_, file.name());
  if (!header.ok()) return header.status();
  file.header_ = *std::move(header);
  for (size_t i = 0; i < file.header_.tensors.size(); ++i) {
    file.index_.emplace(file.header_.tensors[i].name, i);
  }
  return file;
}

const TensorEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

absl::Status SafetensorsFile::Read(const TensorEntry& entry, void* out) const {
  return file_.Read(data_start_ + entry.begin, out, entry.end - entry.begin);
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::string name,
                                                            const std::vector<Tensor>& tensors) {
  nlohmann::json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    uint64_t bytes = static_cast<uint64_t>(tensor.element_bytes);
    for (const int64_t dim : tensor.shape) bytes *= static_cast<uint64_t>(dim);
    header[tensor.name] = {{"dtype", std::string(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data starts aligned
  std::string prefix(kSafetensorsLengthBytes, '\0');
  for (size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i));

  absl::StatusOr<OutputFile> file = OutputFile::Create(path, std::move(name));
  if (!file.ok()) return file.status();
  SafetensorsWriter writer(*std::move(file));
  if (absl::Status status = writer.Append(prefix.data(), prefix.size()); !status.ok()) {
    return status;
  }
  if (absl::Status status = writer.Append(text.data(), text.size()); !status.ok()) return status;
  return writer;
}

}  // namespace hyserve::model
