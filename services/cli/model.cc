// hyserve model: look at, write or verify a checkpoint.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/config_check.h"
#include "engine/model/inspect.h"
#include "engine/model/model.h"
#include "engine/model/presets.h"
#include "engine/model/random_weights.h"
#include "engine/tensor/device.h"
#include "engine/tokenizer/tokenizer.h"
#include "services/cli/args.h"
#include "services/cli/commands.h"

namespace hyserve::cli {
namespace {

constexpr char kUsage[] =
    "usage: hyserve model inspect DIR | --preset NAME [--tokens N] [--kv-dtype bf16|f32]\n"
    "       hyserve model make DIR --preset NAME [--seed N] [--dtype bf16|f16|f32]\n"
    "       hyserve model check DIR\n"
    "inspect prints layer plan, parameters, bytes, and what a hand-off ships; make writes a\n"
    "checkpoint of random weights; check reads a checkpoint as a worker would.\n";

absl::StatusOr<tensor::DType> ReadDType(const Args& args, const char* name) {
  const std::string text = args.Get(name, "bf16");
  for (const tensor::DType dtype :
       {tensor::DType::kBF16, tensor::DType::kF16, tensor::DType::kF32}) {
    if (text == tensor::Name(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", name, " must be bf16, f16 or f32; got '", text, "'"));
}

// The config that a preset or a directory gives.
absl::StatusOr<model::ModelConfig> ReadConfig(const Args& args) {
  const bool has_directory = !args.positionals().empty();
  if (has_directory == args.Has("preset")) {
    return absl::InvalidArgumentError("give a directory or --preset, and not both");
  }
  return has_directory ? model::ReadModelConfig(args.positionals()[0])
                       : model::Preset(args.Get("preset"));
}

int Inspect(const Args& args) {
  const absl::StatusOr<int64_t> tokens = args.GetInt("tokens", 0, 0, int64_t{1} << 40);
  const absl::StatusOr<tensor::DType> kv_dtype = ReadDType(args, "kv-dtype");
  if (!tokens.ok()) return Fail("model", tokens.status(), kExitUsage);
  if (!kv_dtype.ok()) return Fail("model", kv_dtype.status(), kExitUsage);
  const absl::StatusOr<model::ModelConfig> config = ReadConfig(args);
  if (!config.ok()) return Fail("model", config.status(), kExitConfig);
  model::InspectOptions options;
  options.kv_dtype = *kv_dtype;
  if (*tokens > 0) options.handoff_tokens = std::span(&*tokens, 1);
  std::fputs(model::InspectText(*config, options).c_str(), stdout);
  return 0;
}

int Make(const Args& args) {
  const absl::StatusOr<int64_t> seed = args.GetInt("seed", 0, 0, INT64_MAX);
  const absl::StatusOr<tensor::DType> dtype = ReadDType(args, "dtype");
  if (!seed.ok()) return Fail("model", seed.status(), kExitUsage);
  if (!dtype.ok()) return Fail("model", dtype.status(), kExitUsage);
  if (args.positionals().empty() || !args.Has("preset")) {
    return Fail("model", absl::InvalidArgumentError("make needs a directory and --preset"),
                kExitUsage);
  }
  const absl::StatusOr<model::ModelConfig> config = model::Preset(args.Get("preset"));
  if (!config.ok()) return Fail("model", config.status(), kExitUsage);
  const absl::Status written = model::WriteCheckpoint(*config, static_cast<uint64_t>(*seed), *dtype,
                                                      args.positionals()[0]);
  if (!written.ok()) return Fail("model", written, kExitFailure);
  return 0;
}

int Check(const Args& args) {
  if (args.positionals().empty()) {
    return Fail("model", absl::InvalidArgumentError("check needs a directory"), kExitUsage);
  }
  const std::string directory = args.positionals()[0];
  const auto device = tensor::Device::Create({});
  if (!device.ok()) return Fail("model", device.status(), kExitFailure);
  const auto model = model::Model::Load(**device, directory, {});
  if (!model.ok()) return Fail("model", model.status(), kExitConfig);
  const auto tokenizer = tokenizer::Tokenizer::Load(absl::StrCat(directory, "/tokenizer.json"));
  if (!tokenizer.ok()) return Fail("model", tokenizer.status(), kExitConfig);
  if (static_cast<int64_t>((*tokenizer)->vocab_size()) > (*model)->config().vocab_size) {
    return Fail("model",
                absl::InvalidArgumentError(absl::StrCat(
                    directory, "/tokenizer.json: ", (*tokenizer)->vocab_size(),
                    " tokens, but config.json: vocab_size is ", (*model)->config().vocab_size)),
                kExitConfig);
  }
  std::printf("%s: in order, %lld parameters, digest %s\n", directory.c_str(),
              static_cast<long long>((*model)->num_parameters()),
              (*model)->layout().model_digest.c_str());
  return 0;
}

}  // namespace

int RunModel(const std::vector<std::string>& words) {
  const std::string verb = words.empty() ? "" : words[0];
  const std::vector<std::string> rest(words.begin() + (words.empty() ? 0 : 1), words.end());
  const absl::StatusOr<Args> args =
      Args::Parse(rest, {.options = {"preset", "tokens", "kv-dtype", "dtype", "seed"},
                         .flags = {"help"},
                         .max_positionals = 1});
  if (!args.ok()) return Fail("model", args.status(), kExitUsage);
  if (!args->Has("help")) {
    if (verb == "inspect") return Inspect(*args);
    if (verb == "make") return Make(*args);
    if (verb == "check") return Check(*args);
  }
  std::fputs(kUsage, stderr);
  return args->Has("help") || verb == "--help" ? 0 : kExitUsage;
}

}  // namespace hyserve::cli
