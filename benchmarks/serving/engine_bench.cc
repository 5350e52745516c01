// hyserve-engine-bench: prefill and decode of one engine with random weights, at given depths.
//
//   hyserve-engine-bench --preset 0.3b --depths 1024,4096,16384
//   hyserve-engine-bench --preset 7b --device cuda --kv-memory-gib 90 --chunk-tokens 8192
//                        --depths 8192,32768 --batches 1,8,32
//
// --run-tokens 1,64 measures prompts of random tokens and of runs of 64 equal ones
// (MeasurePrefill); --batches adds decode of batches at every depth (MeasureDecode). One JSON line
// per figure; the first names the engine and the copy bandwidth of its memory, measured in the same
// process.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "benchmarks/serving/engine_cases.h"
#include "services/cli/args.h"

namespace hyserve::benchmarks {
namespace {

absl::StatusOr<std::vector<int>> Numbers(const std::string& name, const std::string& text) {
  std::vector<int> numbers;
  for (const auto& word : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    int number = 0;
    if (!absl::SimpleAtoi(word, &number) || number < 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--", name, " must be whole numbers above 0 with commas between them; got '", text, "'"));
    }
    numbers.push_back(number);
  }
  return numbers;
}

void Print(const std::string& preset, nlohmann::ordered_json row) {
  row["preset"] = preset;
  std::puts(row.dump().c_str());
  std::fflush(stdout);
}

struct Flags {
  runtime::EngineOptions options;
  std::vector<int> depths;
  std::vector<int> batches;
  std::vector<int> runs;
  int decode_tokens = 32;
  int repetitions = 3;
};

absl::StatusOr<Flags> ReadFlags(const cli::Args& args) {
  Flags flags;
  const auto threads = args.GetInt("threads", 0, 0, 1024);
  const auto chunk = args.GetInt("chunk-tokens", 512, 64, 1 << 20);
  const auto decode_tokens = args.GetInt("decode-tokens", 32, 1, 1 << 16);
  const auto repetitions = args.GetInt("repetitions", 3, 0, 100);
  const auto kv_memory = args.GetInt("kv-memory-gib", 3, 1, 1 << 20);
  const auto depths = Numbers("depths", args.Get("depths", "1024,4096,16384"));
  const auto runs = Numbers("run-tokens", args.Get("run-tokens", "1"));
  const auto batches = Numbers("batches", args.Get("batches", ""));
  for (const absl::Status& status :
       {threads.status(), chunk.status(), decode_tokens.status(), repetitions.status(),
        kv_memory.status(), depths.status(), runs.status(), batches.status()}) {
    if (!status.ok()) return status;
  }
  flags.depths = *depths;
  flags.runs = *runs;
  flags.batches = *batches;
  flags.decode_tokens = static_cast<int>(*decode_tokens);
  flags.repetitions = static_cast<int>(*repetitions);
  runtime::EngineOptions& options = flags.options;
  options.random_preset = args.Get("preset", "0.3b");
  options.prefix_cache = false;
  options.device.name = args.Get("device", "cpu");
  options.device.num_threads = static_cast<int>(*threads);
  options.device.isa = args.Get("isa", "auto");
  options.chunk_tokens = static_cast<int32_t>(*chunk);
  options.max_sequences =
      flags.batches.empty() ? 1 : *std::max_element(flags.batches.begin(), flags.batches.end());
  options.snapshot_slabs = 0;
  options.kv_memory_bytes = *kv_memory << 30;
  return flags;
}

absl::Status Run(const cli::Args& args) {
  const absl::StatusOr<Flags> flags = ReadFlags(args);
  if (!flags.ok()) return flags.status();
  const std::string& preset = flags->options.random_preset;
  const auto device = tensor::Device::Create(flags->options.device);
  if (!device.ok()) return device.status();
  const absl::StatusOr<double> copy = MeasureCopyBandwidth(**device);
  if (!copy.ok()) return copy.status();
  const auto engine = runtime::Engine::Create(flags->options, nullptr);
  if (!engine.ok()) return engine.status();
  if (!flags->batches.empty()) {
    if (absl::Status status = FillPool(**device, **engine); !status.ok()) return status;
  }
  Print(preset, {{"engine", (*engine)->Description()},
                 {"copy_gigabytes_per_second", *copy / 1e9},
                 {"chunk_tokens", flags->options.chunk_tokens}});
  for (const int depth : flags->depths) {
    for (const int run : flags->runs) {
      if (flags->repetitions == 0) break;
      auto row = MeasurePrefill(**engine, depth, run, flags->decode_tokens, flags->repetitions);
      if (!row.ok()) return row.status();
      Print(preset, *std::move(row));
    }
    for (const int batch : flags->batches) {
      auto row = MeasureDecode(**engine, depth, batch, flags->decode_tokens);
      if (absl::IsResourceExhausted(row.status())) {
        Print(preset, {{"depth_tokens", depth},
                       {"batch", batch},
                       {"error", std::string(row.status().message())}});
        continue;
      }
      if (!row.ok()) return row.status();
      (*row)["of_copy_bandwidth"] = (*row)["gigabytes_per_second"].get<double>() * 1e9 / *copy;
      Print(preset, *std::move(row));
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace hyserve::benchmarks

int main(int argc, char** argv) {
  const auto args = hyserve::cli::Args::Parse(
      std::vector<std::string>(argv + 1, argv + argc),
      {.options = {"preset", "device", "threads", "isa", "chunk-tokens", "depths", "run-tokens",
                   "batches", "decode-tokens", "repetitions", "kv-memory-gib"}});
  const absl::Status status = args.ok() ? hyserve::benchmarks::Run(*args) : args.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "hyserve-engine-bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
