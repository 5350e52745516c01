#include "engine/model/random_weights.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <string_view>
#include <vector>

#include "base/strings.h"
#include "engine/model/config_check.h"
#include "engine/model/config_json.h"
#include "engine/model/digest.h"
#include "engine/model/file.h"
#include "engine/model/host_parallel.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/convert.h"

namespace hyserve::model {
namespace {

constexpr int64_t kElementsPerPiece = int64_t{1} << 20;

// The finaliser of SplitMix64: a bijection of 64 bits whose every output bit depends on every input
// bit.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t StreamOf(uint64_t seed, std::string_view name) {
  uint64_t stream = Mix(seed + 0x9e3779b97f4a7c15u);
  for (const unsigned char c : name) stream = Mix(stream * 0x100 + c + 1);
  return stream;
}

// Mean 0, deviation 1: four uniform 16-bit numbers have the variance 4 * (2^32 - 1) / 12.
float Deviate(uint64_t stream, uint64_t index) {
  const uint64_t bits = Mix(stream + index * 0x9e3779b97f4a7c15u);
  const int32_t sum = static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                                           (bits >> 32 & 0xffff) + (bits >> 48));
  constexpr float kScale = 2.6429e-5f;  // 1 / sqrt(4 * (2^32 - 1) / 12)
  return static_cast<float>(sum - 131070) * kScale;
}

// Round to nearest even. Weights are far from the ends of the range; beyond them: infinity.
uint16_t FloatToF16(float value) {
  const float magnitude = std::abs(value);
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) {
    return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  }
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(fraction * 2048.0f));  // 1024 .. 2048
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + (mantissa - 1024)));
}

template <typename Store>
void Fill(const TensorSpec& spec, uint64_t stream, int64_t begin, int64_t end, Store store) {
  for (int64_t i = begin; i < end; ++i) {
    store(i, spec.mean + spec.deviation * Deviate(stream, static_cast<uint64_t>(i)));
  }
}

struct FileDType {
  std::string_view name;
  std::string_view torch_name;
};
FileDType FileDTypeOf(tensor::DType dtype) {
  if (dtype == tensor::DType::kBF16) return {"BF16", "bfloat16"};
  if (dtype == tensor::DType::kF16) return {"F16", "float16"};
  return {"F32", "float32"};
}

absl::Status WriteFile(const std::string& path, std::string_view name, std::string_view text) {
  absl::StatusOr<OutputFile> file = OutputFile::Create(path, std::string(name));
  if (!file.ok()) return file.status();
  if (absl::Status status = file->Write(text.data(), text.size()); !status.ok()) return status;
  return file->Finish();
}

absl::Status WriteTensors(const ModelConfig& config, uint64_t seed, tensor::DType dtype,
                          const std::vector<TensorSpec>& plan, SafetensorsWriter* writer) {
  int64_t largest = 0;
  for (const TensorSpec& spec : plan) largest = std::max(largest, spec.num_elements());
  RandomWeights weights(config, dtype, seed);
  std::vector<float> staging((largest * tensor::SizeOf(dtype) + 3) / 4);
  for (const TensorSpec& spec : plan) {
    if (absl::Status status = weights.Read(spec, staging.data()); !status.ok()) return status;
    const uint64_t bytes = spec.num_elements() * tensor::SizeOf(dtype);
    if (absl::Status status = writer->Append(staging.data(), bytes); !status.ok()) return status;
  }
  return writer->Finish();
}

}  // namespace

absl::Status RandomWeights::Read(const TensorSpec& spec, void* out) {
  const uint64_t stream = StreamOf(seed_, spec.name);
  const int64_t count = spec.num_elements();
  return ParallelPieces((count + kElementsPerPiece - 1) / kElementsPerPiece, [&](int64_t piece) {
    const int64_t begin = piece * kElementsPerPiece;
    const int64_t end = std::min(count, begin + kElementsPerPiece);
    if (dtype_ == tensor::DType::kF32) {
      float* const values = static_cast<float*>(out);
      Fill(spec, stream, begin, end, [=](int64_t i, float value) { values[i] = value; });
    } else if (dtype_ == tensor::DType::kBF16) {
      uint16_t* const values = static_cast<uint16_t*>(out);
      Fill(spec, stream, begin, end,
           [=](int64_t i, float value) { values[i] = tensor::FloatToBf16(value); });
    } else {
      uint16_t* const values = static_cast<uint16_t*>(out);
      Fill(spec, stream, begin, end,
           [=](int64_t i, float value) { values[i] = FloatToF16(value); });
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::string> RandomWeights::Finish() {
  Sha256 hash;
  hash.UpdateText("random");
  hash.UpdateText(ConfigToJson(config_, ""));
  hash.UpdateText(StrCat(seed_));
  hash.UpdateText(tensor::Name(dtype_));
  return DigestText(hash.Finish());
}

absl::Status WriteCheckpoint(const ModelConfig& config, uint64_t seed, tensor::DType dtype,
                             const std::string& directory) {
  if (absl::Status status = CheckModelConfig(config, "config"); !status.ok()) return status;
  if (dtype == tensor::DType::kI32) {
    return absl::InvalidArgumentError("weights must be f32, bf16 or f16");
  }
  if (mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
    return FileError(errno, directory, "create");
  }
  const FileDType file_dtype = FileDTypeOf(dtype);
  const std::vector<TensorSpec> plan = AllTensors(config);
  std::vector<SafetensorsWriter::Tensor> tensors;
  for (const TensorSpec& spec : plan) {
    tensors.push_back({spec.name, file_dtype.name, static_cast<int>(tensor::SizeOf(dtype)),
                       spec.shape});
  }
  const std::string path = StrCat(directory, "/model.safetensors");
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(path, "model.safetensors", tensors);
  if (!writer.ok()) return writer.status();
  absl::Status status = WriteTensors(config, seed, dtype, plan, &*writer);
  // Last, so that a directory with a config.json holds a whole checkpoint.
  if (status.ok()) {
    status = WriteFile(StrCat(directory, "/config.json"), "config.json",
                       ConfigToJson(config, file_dtype.torch_name));
  }
  if (!status.ok()) unlink(path.c_str());
  return status;
}

}  // namespace hyserve::model
