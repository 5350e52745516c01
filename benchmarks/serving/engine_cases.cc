#include "benchmarks/serving/engine_cases.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/inspect.h"
#include "engine/tensor/convert.h"

namespace hyserve::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Ids are unique within the process.
runtime::SequenceId NextId() {
  static runtime::SequenceId id = 0;
  return ++id;
}

// Times of one sequence.
class Recorder : public runtime::EventSink {
 public:
  void OnAdmitted(const runtime::KvBlocks&, int32_t) override { MarkPrompt(0); }
  void OnPrefillProgress(int32_t computed_tokens) override { MarkPrompt(computed_tokens); }
  void OnReserved(const absl::StatusOr<runtime::KvBlocks>& kv) override {
    std::lock_guard lock(mutex_);
    reserved_ = true;
    status_ = kv.status();
    changed_.notify_all();
  }
  void OnTokens(int32_t, const std::vector<sampling::SampledToken>& tokens) override {
    std::lock_guard lock(mutex_);
    token_times_.insert(token_times_.end(), tokens.size(), Clock::now());
  }
  void OnFinished(const absl::Status& status, sampling::FinishReason,
                  const runtime::Usage&) override {
    std::lock_guard lock(mutex_);
    status_ = status;
    finished_ = true;
    changed_.notify_all();
  }
  absl::Status WaitReserved() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reserved_; });
    return status_;
  }
  absl::Status WaitFinished() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_; });
    return status_;
  }

  // Of a finished sequence.
  const std::vector<Clock::time_point>& token_times() const { return token_times_; }
  double FirstToken() const { return Seconds(token_times_.front() - prompt_.front().second); }
  double Prefill() const {
    return prompt_.back().first / Seconds(prompt_.back().second - prompt_.front().second);
  }
  double LastChunk() const {
    const auto& [tokens, time] = prompt_[prompt_.size() - 2];
    return (prompt_.back().first - tokens) / Seconds(prompt_.back().second - time);
  }
  // Seconds until the first 4,096, 8,192, 16,384 ... tokens of the prompt were computed: the time
  // to the first token of a prompt of that length, but for its logits.
  nlohmann::ordered_json PrefillCurve() const {
    nlohmann::ordered_json curve;
    int64_t mark = 4096;
    for (const auto& [tokens, time] : prompt_) {
      while (tokens > mark) mark *= 2;
      if (tokens == mark) curve[std::to_string(mark)] = Seconds(time - prompt_.front().second);
    }
    return curve;
  }
  double Decode() const {
    return (token_times_.size() - 1) / Seconds(token_times_.back() - token_times_.front());
  }

 private:
  void MarkPrompt(int32_t tokens) {
    std::lock_guard lock(mutex_);
    prompt_.emplace_back(tokens, Clock::now());
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<int32_t, Clock::time_point>> prompt_;
  std::vector<Clock::time_point> token_times_;
  bool reserved_ = false;
  bool finished_ = false;
  absl::Status status_;
};

runtime::SequenceRequest RandomRequest(const runtime::Engine& engine, int depth, int run_tokens,
                                       int max_tokens) {
  runtime::SequenceRequest request;
  request.id = NextId();
  std::mt19937 random(static_cast<unsigned>(request.id));
  for (int i = 0; i < depth; ++i) {
    request.prompt.push_back(i % run_tokens > 0
                                 ? request.prompt.back()
                                 : static_cast<int32_t>(random() % engine.config().vocab_size));
  }
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.use_prefix_cache = false;
  return request;
}

// Bytes of cached keys and values that one token at `depth` reads.
int64_t KvBytesRead(const runtime::Engine& engine, int64_t depth) {
  const model::ModelConfig& config = engine.config();
  const kv_cache::KvLayout& layout = engine.layout();
  const int64_t page_token = static_cast<int64_t>(layout.slice_bytes()) / kv_cache::kTokensPerBlock;
  int64_t bytes = 0;
  for (const model::LayerSpec& layer : config.layers) {
    if (layer.kind == model::LayerKind::kFull) bytes += depth * page_token;
    if (layer.kind == model::LayerKind::kSparse) {
      bytes += std::min<int64_t>(depth, config.sparse_topk_tokens) * page_token;
    }
  }
  return bytes + static_cast<int64_t>(layout.slab_bytes);
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> MeasurePrefill(runtime::Engine& engine, int depth,
                                                      int run_tokens, int decode_tokens,
                                                      int repetitions) {
  std::vector<double> first_token, prefill, last_chunk, decode;
  nlohmann::ordered_json curve;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    auto recorder = std::make_shared<Recorder>();
    absl::Status status =
        engine.Submit(RandomRequest(engine, depth, run_tokens, decode_tokens + 1), recorder);
    if (status.ok()) status = recorder->WaitFinished();
    if (!status.ok()) return status;
    first_token.push_back(recorder->FirstToken());
    prefill.push_back(recorder->Prefill());
    last_chunk.push_back(recorder->LastChunk());
    decode.push_back(recorder->Decode());
    curve = recorder->PrefillCurve();
  }
  nlohmann::ordered_json row;
  row["depth_tokens"] = depth;
  row["run_tokens"] = run_tokens;
  row["ttft_seconds"] = Median(first_token);
  row["prefill_tokens_per_second"] = Median(prefill);
  row["prefill_last_chunk_tokens_per_second"] = Median(last_chunk);
  if (!curve.empty()) row["prefill_seconds_at_tokens"] = std::move(curve);
  row["decode_tokens_per_second"] = Median(decode);
  row["kv_bytes"] = kv_cache::KvLayout::NumBlocks(depth) * engine.layout().block_bytes() +
                    engine.layout().slab_bytes;
  row["repetitions"] = repetitions;
  return row;
}

absl::StatusOr<nlohmann::ordered_json> MeasureDecode(runtime::Engine& engine, int depth, int batch,
                                                     int decode_tokens) {
  const int64_t blocks = batch * kv_cache::KvLayout::NumBlocks(depth + decode_tokens + 1);
  if (blocks > engine.kv_pool().num_blocks()) {
    return absl::ResourceExhaustedError(absl::StrCat("the pool has ", engine.kv_pool().num_blocks(),
                                                     " blocks, the batch needs ", blocks));
  }
  std::vector<std::shared_ptr<Recorder>> recorders;
  std::vector<runtime::SequenceId> ids;
  absl::Status status;
  for (int i = 0; i < batch && status.ok(); ++i) {
    runtime::SequenceRequest request = RandomRequest(engine, depth, 1, decode_tokens + 1);
    request.mode = runtime::SequenceMode::kDecode;
    ids.push_back(request.id);
    recorders.push_back(std::make_shared<Recorder>());
    status = engine.Reserve(std::move(request), recorders.back());
    if (status.ok()) status = recorders.back()->WaitReserved();
  }
  if (!status.ok()) {
    for (const runtime::SequenceId id : ids) engine.Release(id);
    return status;
  }
  for (const runtime::SequenceId id : ids) engine.Resume(id, /*first_token=*/1);
  for (const auto& recorder : recorders) {
    if (const absl::Status end = recorder->WaitFinished(); !end.ok()) return end;
  }
  // Steps in which every sequence took part: from the last one's start to the first one's end.
  Clock::time_point begin = recorders[0]->token_times().front();
  Clock::time_point end = recorders[0]->token_times().back();
  for (const auto& recorder : recorders) {
    begin = std::max(begin, recorder->token_times().front());
    end = std::min(end, recorder->token_times().back());
  }
  std::vector<double> steps;
  const std::vector<Clock::time_point>& times = recorders[0]->token_times();
  for (size_t i = 1; i < times.size(); ++i) {
    if (times[i - 1] >= begin && times[i] <= end) steps.push_back(Seconds(times[i] - times[i - 1]));
  }
  if (steps.empty()) return absl::InternalError("decode: no step had the whole batch");
  const double step = Median(steps);
  const double bytes = 2.0 * model::CountParameters(engine.config()).active +
                       static_cast<double>(batch) * KvBytesRead(engine, depth);
  nlohmann::ordered_json row;
  row["depth_tokens"] = depth;
  row["batch"] = batch;
  row["step_ms"] = step * 1e3;
  row["step_ms_least"] = *std::min_element(steps.begin(), steps.end()) * 1e3;
  row["tokens_per_second"] = batch / step;
  row["step_gigabytes"] = bytes / 1e9;
  row["gigabytes_per_second"] = bytes / 1e9 / step;
  row["steps"] = steps.size();
  return row;
}

absl::Status FillPool(tensor::Device& device, const runtime::Engine& engine) {
  std::vector<uint16_t> values(size_t{16} << 20);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (uint16_t& value : values) value = tensor::FloatToBf16(normal(random));
  for (const tensor::Buffer* memory :
       {&engine.kv_pool().block_memory(), &engine.kv_pool().slab_memory()}) {
    char* const begin = static_cast<char*>(memory->data());
    size_t filled = std::min(memory->size_bytes(), values.size() * sizeof(uint16_t));
    if (absl::Status status = device.CopyToDevice(begin, values.data(), filled); !status.ok()) {
      return status;
    }
    while (filled < memory->size_bytes()) {
      const size_t count = std::min(filled, memory->size_bytes() - filled);
      if (absl::Status status = device.CopyOnDevice(begin + filled, begin, count); !status.ok()) {
        return status;
      }
      filled += count;
    }
  }
  return device.Synchronize();
}

absl::StatusOr<double> MeasureCopyBandwidth(tensor::Device& device) {
  constexpr size_t kBytes = size_t{1} << 30;
  const absl::StatusOr<tensor::Buffer> from = device.Allocate(kBytes);
  if (!from.ok()) return from.status();
  const absl::StatusOr<tensor::Buffer> to = device.Allocate(kBytes);
  if (!to.ok()) return to.status();
  std::vector<double> seconds;
  for (int i = 0; i < 8; ++i) {
    const Clock::time_point begin = Clock::now();
    absl::Status status = device.CopyOnDevice(to->data(), from->data(), kBytes);
    if (status.ok()) status = device.Synchronize();
    if (!status.ok()) return status;
    if (i > 0) seconds.push_back(Seconds(Clock::now() - begin));
  }
  return 2.0 * kBytes / Median(seconds);
}

}  // namespace hyserve::benchmarks
