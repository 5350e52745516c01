#include "engine/model/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/strings.h"
#include "engine/model/checkpoint_index.h"
#include "engine/model/config_json.h"
#include "engine/model/file.h"
#include "engine/model/finite.h"
#include "engine/model/host_parallel.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

constexpr size_t kMaxFaults = 20;
constexpr std::string_view kSingleFileName = "model.safetensors";

// Collects lines, and counts those beyond the limit.
class Faults {
 public:
  template <typename... Parts>
  void Add(const Parts&... parts) {
    ++count_;
    if (lines_.size() < kMaxFaults) lines_.push_back(StrCat(parts...));
  }
  absl::Status ToStatus() const {
    if (count_ == 0) return absl::OkStatus();
    std::string text = absl::StrJoin(lines_, "\n");
    if (count_ > lines_.size()) text += StrCat("\nand ", count_ - lines_.size(), " more");
    return absl::InvalidArgumentError(text);
  }

 private:
  size_t count_ = 0;
  std::vector<std::string> lines_;
};

bool IsWeightDType(std::string_view dtype) {
  return dtype == "F32" || dtype == "BF16" || dtype == "F16";
}

tensor::DType ToDType(std::string_view dtype) {
  if (dtype == "BF16") return tensor::DType::kBF16;
  return dtype == "F16" ? tensor::DType::kF16 : tensor::DType::kF32;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return StrCat("[", absl::StrJoin(shape, ", "), "]");
}

bool Exists(const absl::Status& status) { return !absl::IsNotFound(status); }

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory,
                                                             const ModelConfig& config,
                                                             bool check_finite) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(config, check_finite));
  const std::string single = StrCat(directory, "/", kSingleFileName);
  const std::string index = StrCat(directory, "/", kIndexFileName);
  const bool has_single = Exists(InputFile::Open(single, "").status());
  const bool has_index = Exists(InputFile::Open(index, "").status());
  if (has_single && has_index) {
    return absl::InvalidArgumentError(
        StrCat("both ", kSingleFileName, " and ", kIndexFileName, " are there; keep one"));
  }
  if (!has_single && !has_index) {
    return absl::NotFoundError(
        StrCat("neither ", kSingleFileName, " nor ", kIndexFileName, " is there"));
  }
  if (has_single) {
    absl::StatusOr<SafetensorsFile> file =
        SafetensorsFile::Open(single, std::string(kSingleFileName));
    if (!file.ok()) return file.status();
    if (absl::Status status =
            checkpoint->AddFile(std::make_unique<SafetensorsFile>(*std::move(file)));
        !status.ok()) {
      return status;
    }
  } else if (absl::Status status = checkpoint->OpenShards(directory); !status.ok()) {
    return status;
  }
  if (absl::Status status = checkpoint->CompareWithPlan(); !status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::AddFile(std::unique_ptr<SafetensorsFile> file) {
  Faults faults;
  for (const TensorEntry& entry : file->tensors()) {
    const auto [place, added] = places_.try_emplace(entry.name, Place{file.get(), &entry, {}});
    if (!added) {
      faults.Add(file->name(), ": tensor \"", Printable(entry.name), "\": is in ",
                 place->second.file->name(), " too");
    }
  }
  files_.push_back(std::move(file));
  return faults.ToStatus();
}

absl::Status Checkpoint::OpenShards(const std::string& directory) {
  const absl::StatusOr<std::string> text = ReadSmallFile(
      StrCat(directory, "/", kIndexFileName), kIndexFileName, size_t{64} << 20);
  if (!text.ok()) return text.status();
  const absl::StatusOr<CheckpointIndex> index = ParseCheckpointIndex(*text, kIndexFileName);
  if (!index.ok()) return index.status();

  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index->shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    const absl::StatusOr<std::string> path = ResolveShard(directory, shard);
    if (!path.ok()) return path.status();
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(*path, shard);
    if (!file.ok()) return file.status();
    if (absl::Status status = AddFile(std::make_unique<SafetensorsFile>(*std::move(file)));
        !status.ok()) {
      return status;
    }
  }

  Faults faults;
  uint64_t total_size = 0;
  for (const auto& [tensor, place] : places_) {
    total_size += place.entry->end - place.entry->begin;
    const auto listed = index->shard_of.find(tensor);
    if (listed == index->shard_of.end()) {
      faults.Add(place.file->name(), ": tensor \"", Printable(tensor), "\": is not in ",
                 kIndexFileName);
    } else if (listed->second != place.file->name()) {
      faults.Add(kIndexFileName, ": tensor \"", Printable(tensor), "\": is in ",
                 place.file->name(), ", not in ", listed->second);
    }
  }
  for (const auto& [tensor, shard] : index->shard_of) {
    if (places_.find(tensor) == places_.end()) {
      faults.Add(kIndexFileName, ": tensor \"", Printable(tensor), "\": is not in ", shard);
    }
  }
  if (index->total_size.has_value() && *index->total_size != total_size) {
    faults.Add(kIndexFileName, ": metadata.total_size: ", *index->total_size,
               ", but the shards hold ", total_size, " bytes");
  }
  return faults.ToStatus();
}

absl::Status Checkpoint::CompareWithPlan() const {
  Faults faults;
  std::set<std::string_view> wanted;
  const std::vector<TensorSpec> plan = AllTensors(config_);
  for (const TensorSpec& spec : plan) {
    wanted.insert(spec.name);
    const auto found = places_.find(spec.name);
    if (found == places_.end()) {
      faults.Add("tensor \"", spec.name, "\": missing");
      continue;
    }
    const TensorEntry& entry = *found->second.entry;
    const std::string where =
        StrCat(found->second.file->name(), ": tensor \"", spec.name, "\": ");
    if (entry.shape != spec.shape) {
      faults.Add(where, "shape must be ", ShapeText(spec.shape), "; is ", ShapeText(entry.shape));
    }
    if (!IsWeightDType(entry.dtype)) {
      faults.Add(where, "dtype must be F32, BF16 or F16; is ", entry.dtype);
    }
  }
  for (const auto& [name, place] : places_) {
    if (wanted.count(name) == 0) {
      faults.Add(place.file->name(), ": tensor \"", Printable(name),
                 "\": does not belong to a model of this config.json");
    }
  }
  return faults.ToStatus();
}

tensor::DType Checkpoint::DTypeOf(const TensorSpec& spec) const {
  return ToDType(places_.find(spec.name)->second.entry->dtype);
}

absl::Status Checkpoint::Read(const TensorSpec& spec, void* out) {
  Place& place = places_.find(spec.name)->second;
  const uint64_t bytes = place.entry->end - place.entry->begin;
  const tensor::DType dtype = ToDType(place.entry->dtype);
  const int64_t num_pieces = static_cast<int64_t>((bytes + kDigestPieceBytes - 1) /
                                                  kDigestPieceBytes);
  std::vector<Sha256Value> digests(num_pieces);
  std::atomic<int64_t> not_finite{0};
  // Each piece is hashed and looked through while it is in the cache.
  absl::Status status = ParallelPieces(num_pieces, [&](int64_t piece) {
    TensorEntry part = *place.entry;
    part.begin += piece * kDigestPieceBytes;
    part.end = std::min<uint64_t>(part.end, part.begin + kDigestPieceBytes);
    char* const target = static_cast<char*>(out) + piece * kDigestPieceBytes;
    if (absl::Status read = place.file->Read(part, target); !read.ok()) return read;
    const uint64_t part_bytes = part.end - part.begin;
    Sha256 hash;
    hash.Update(target, part_bytes);
    digests[piece] = hash.Finish();
    if (check_finite_) {
      not_finite += CountNotFinite(target, static_cast<int64_t>(part_bytes / SizeOf(dtype)), dtype);
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  if (not_finite > 0) {
    return absl::InvalidArgumentError(StrCat(place.file->name(), ": tensor \"", spec.name,
                                             "\": weights contain ", not_finite.load(),
                                             " NaN or infinite values"));
  }
  Sha256 whole;
  whole.Update(digests.data(), digests.size() * sizeof(Sha256Value));
  place.digest = whole.Finish();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Checkpoint::Finish() {
  for (const std::unique_ptr<SafetensorsFile>& file : files_) {
    if (absl::Status status = file->CheckUnchanged(); !status.ok()) return status;
  }
  Sha256 hash;
  hash.UpdateText("checkpoint");
  hash.UpdateText(ConfigToJson(config_, ""));
  for (const auto& [name, place] : places_) {
    hash.UpdateText(name);
    hash.UpdateText(place.entry->dtype);
    hash.Update(place.digest.data(), place.digest.size());
  }
  return DigestText(hash.Finish());
}

}  // namespace hyserve::model
