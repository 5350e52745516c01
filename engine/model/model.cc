#include "engine/model/model.h"

#include <utility>

#include "base/strings.h"
#include "engine/model/checkpoint.h"
#include "engine/model/config_check.h"
#include "engine/model/forward.h"
#include "engine/model/random_weights.h"
#include "engine/model/weights.h"

namespace hyserve::model {
namespace {

absl::Status CheckOptions(const ModelOptions& options) {
  if (options.kv_dtype == tensor::DType::kBF16 || options.kv_dtype == tensor::DType::kF32) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(StrCat("the KV cache's dtype must be bf16 or f32, not ",
                                           std::string(tensor::Name(options.kv_dtype))));
}

// Before a load of minutes begins that must fail.
absl::Status CheckFits(tensor::Device& device, const ModelConfig& config, TensorSource& source) {
  const absl::StatusOr<size_t> free = device.FreeBytes();
  if (absl::IsUnimplemented(free.status())) return absl::OkStatus();
  if (!free.ok()) return free.status();
  const absl::StatusOr<size_t> needed = WeightBytes(device, config, source);
  if (!needed.ok()) return needed.status();
  if (*needed <= *free) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat("the weights take ", BytesText(*needed), ", but ",
                                             device.Description(), " has ", BytesText(*free),
                                             " free"));
}

absl::StatusOr<std::unique_ptr<Model>> FromSource(tensor::Device& device,
                                                  const ModelConfig& config, TensorSource& source,
                                                  const ModelOptions& options) {
  if (absl::Status status = CheckFits(device, config, source); !status.ok()) return status;
  absl::StatusOr<ModelWeights> weights = LoadWeights(device, config, source);
  if (!weights.ok()) return weights.status();
  return MakeModel(device, config, *std::move(weights), options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(tensor::Device& device,
                                                   const std::string& directory,
                                                   const ModelOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(directory, *config, options.check_finite);
  if (!checkpoint.ok()) return checkpoint.status();
  return FromSource(device, *config, **checkpoint, options);
}

absl::StatusOr<std::unique_ptr<Model>> Model::Random(tensor::Device& device,
                                                     const ModelConfig& config,
                                                     tensor::DType weight_dtype, uint64_t seed,
                                                     const ModelOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  if (absl::Status status = CheckModelConfig(config, "config"); !status.ok()) return status;
  if (weight_dtype == tensor::DType::kI32) {
    return absl::InvalidArgumentError("weights must be f32, bf16 or f16");
  }
  RandomWeights source(config, weight_dtype, seed);
  return FromSource(device, config, source, options);
}

}  // namespace hyserve::model
