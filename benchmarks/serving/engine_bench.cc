// hyserve-engine-bench: prefill and decode tokens per second of one engine at given depths.
//
// For every depth one sequence is computed from nothing: prefill speed over the last chunk before the
// depth ("at depth") and over the whole prompt, then decode speed of the tokens after it. Weights and
// prompt are random; figures are medians over repetitions. One JSON line per depth.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "engine/runtime/engine.h"
#include "services/cli/args.h"

namespace hyserve::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

// Times of one sequence.
class Recorder : public runtime::EventSink {
 public:
  void OnAdmitted(const runtime::KvBlocks&, int32_t) override { Mark(0); }
  void OnPrefillProgress(int32_t computed_tokens) override { Mark(computed_tokens); }
  void OnTokens(int32_t, const std::vector<sampling::SampledToken>& tokens) override {
    std::lock_guard lock(mutex_);
    if (tokens_ == 0) first_token_ = Clock::now();
    tokens_ += static_cast<int>(tokens.size());
    last_token_ = Clock::now();
  }
  void OnFinished(const absl::Status& status, sampling::FinishReason, const runtime::Usage&) override {
    std::lock_guard lock(mutex_);
    status_ = status;
    finished_ = true;
    changed_.notify_all();
  }
  absl::Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_; });
    return status_;
  }
  // Tokens per second of the whole prompt, of its last chunk, and of decoding.
  double Prefill() const {
    return (marks_.back().first - marks_.front().first) /
           Seconds(marks_.back().second - marks_.front().second);
  }
  double LastChunk() const {
    const auto& [tokens, time] = marks_[marks_.size() - 2];
    return (marks_.back().first - tokens) / Seconds(marks_.back().second - time);
  }
  double Decode() const { return (tokens_ - 1) / Seconds(last_token_ - first_token_); }

 private:
  static double Seconds(Clock::duration duration) {
    return std::chrono::duration<double>(duration).count();
  }
  void Mark(int32_t tokens) {
    std::lock_guard lock(mutex_);
    marks_.emplace_back(tokens, Clock::now());
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<int32_t, Clock::time_point>> marks_;
  Clock::time_point first_token_, last_token_;
  int tokens_ = 0;
  bool finished_ = false;
  absl::Status status_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status RunDepth(runtime::Engine& engine, const std::string& preset, int depth, int decode_tokens,
                      int repetitions) {
  std::vector<double> prefill, last_chunk, decode;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    std::mt19937 random(static_cast<unsigned>(depth + repetition));
    runtime::SequenceRequest request;
    request.id = static_cast<runtime::SequenceId>(depth) * 1000 + repetition + 1;
    for (int i = 0; i < depth; ++i) {
      request.prompt.push_back(static_cast<int32_t>(random() % engine.config().vocab_size));
    }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = decode_tokens + 1;
    request.sampling.ignore_eos = true;
    request.use_prefix_cache = false;
    auto recorder = std::make_shared<Recorder>();
    absl::Status status = engine.Submit(std::move(request), recorder);
    if (status.ok()) status = recorder->Wait();
    if (!status.ok()) return status;
    prefill.push_back(recorder->Prefill());
    last_chunk.push_back(recorder->LastChunk());
    decode.push_back(recorder->Decode());
  }
  nlohmann::ordered_json row;
  row["preset"] = preset;
  row["engine"] = engine.Description();
  row["depth_tokens"] = depth;
  row["prefill_tokens_per_second"] = Median(prefill);
  row["prefill_last_chunk_tokens_per_second"] = Median(last_chunk);
  row["decode_tokens_per_second"] = Median(decode);
  row["repetitions"] = repetitions;
  std::puts(row.dump().c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run(const cli::Args& args) {
  runtime::EngineOptions options;
  options.random_preset = args.Get("preset", "0.3b");
  options.prefix_cache = false;
  const auto threads = args.GetInt("threads", 0, 0, 1024);
  const auto chunk = args.GetInt("chunk-tokens", 512, 64, 1 << 16);
  const auto decode_tokens = args.GetInt("decode-tokens", 32, 1, 1 << 16);
  const auto repetitions = args.GetInt("repetitions", 3, 1, 100);
  for (const absl::Status& status :
       {threads.status(), chunk.status(), decode_tokens.status(), repetitions.status()}) {
    if (!status.ok()) return status;
  }
  options.device.num_threads = static_cast<int>(*threads);
  options.device.isa = args.Get("isa", "auto");
  options.chunk_tokens = static_cast<int32_t>(*chunk);
  options.max_sequences = 1;
  options.snapshot_slabs = 0;
  options.kv_memory_bytes = int64_t{3} << 30;
  const absl::StatusOr<std::unique_ptr<runtime::Engine>> engine =
      runtime::Engine::Create(options, nullptr);
  if (!engine.ok()) return engine.status();
  for (const auto& word : absl::StrSplit(args.Get("depths", "1024,4096,16384"), ',')) {
    int depth = 0;
    if (!absl::SimpleAtoi(word, &depth) || depth < 1) {
      return absl::InvalidArgumentError("--depths must be whole numbers with commas between them");
    }
    const absl::Status status =
        RunDepth(**engine, options.random_preset, depth, static_cast<int>(*decode_tokens),
                 static_cast<int>(*repetitions));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace hyserve::benchmarks

int main(int argc, char** argv) {
  const auto args = hyserve::cli::Args::Parse(
      std::vector<std::string>(argv + 1, argv + argc),
      {.options = {"preset", "threads", "isa", "chunk-tokens", "depths", "decode-tokens",
                   "repetitions"}});
  const absl::Status status = args.ok() ? hyserve::benchmarks::Run(*args) : args.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "hyserve-engine-bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
