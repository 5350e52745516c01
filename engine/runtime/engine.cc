#include "engine/runtime/engine.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/presets.h"
#include "engine/runtime/engine_loop.h"
#include "engine/runtime/kv_budget.h"

namespace hyserve::runtime {
namespace {

absl::StatusOr<std::unique_ptr<model::Model>> MakeModel(const EngineOptions& options,
                                                        tensor::Device& device) {
  if (options.model_directory.empty() == options.random_preset.empty()) {
    return absl::InvalidArgumentError("give either model_directory or random_preset");
  }
  if (!options.model_directory.empty()) {
    return model::Model::Load(device, options.model_directory, options.model);
  }
  auto config = model::Preset(options.random_preset);
  if (!config.ok()) return config.status();
  return model::Model::Random(device, *config, options.random_dtype, options.random_seed,
                              options.model);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       StepObserver observer) {
  // Before the model is loaded, which may take minutes.
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  auto device = tensor::Device::Create(options.device);
  if (!device.ok()) return device.status();
  auto model = MakeModel(options, **device);
  if (absl::IsResourceExhausted(model.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("model ", options.model_directory, options.random_preset, ": ",
                     model.status().message()));
  }
  if (!model.ok()) return model.status();
  return MakeEngine(options, *std::move(device), *std::move(model), std::move(observer));
}

}  // namespace hyserve::runtime
