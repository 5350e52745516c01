#include "tests/engine/model/model_runner.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace hyserve::model {
namespace {

std::unique_ptr<tensor::Device> MakeDevice(int num_threads, const std::string& name = "cpu") {
  auto device = tensor::Device::Create({.name = name, .num_threads = num_threads});
  if (!device.ok()) ADD_FAILURE() << device.status();
  return *std::move(device);
}

}  // namespace

ModelRunner::ModelRunner(std::unique_ptr<tensor::Device> device, std::unique_ptr<Model> model,
                         int64_t num_blocks, int64_t num_slabs)
    : device_(std::move(device)), model_(std::move(model)) {
  auto pool = attention::KvPool::Create(*device_, model_->layout(), num_blocks, num_slabs);
  if (!pool.ok()) ADD_FAILURE() << pool.status();
  pool_ = *std::move(pool);
  for (int32_t block = 0; block < num_blocks; ++block) free_blocks_.push_back(block);
  std::mt19937 random(5);
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random);
}

ModelRunner ModelRunner::Load(const std::string& directory, tensor::DType kv_dtype,
                              int64_t num_blocks, int64_t num_slabs, int num_threads) {
  auto device = MakeDevice(num_threads);
  auto model = Model::Load(*device, directory, {.kv_dtype = kv_dtype});
  if (!model.ok()) ADD_FAILURE() << directory << ": " << model.status();
  return ModelRunner(std::move(device), *std::move(model), num_blocks, num_slabs);
}

ModelRunner ModelRunner::LoadExact(const std::string& directory, tensor::DType kv_dtype) {
  for (const char* isa : {"avx512", "avx2", "scalar"}) {
    auto device = tensor::Device::Create({.num_threads = 2, .isa = isa});
    if (!device.ok()) continue;  // this machine lacks it
    auto model = Model::Load(**device, directory, {.kv_dtype = kv_dtype});
    if (!model.ok()) ADD_FAILURE() << directory << ": " << model.status();
    return ModelRunner(*std::move(device), *std::move(model), 64, 8);
  }
  ADD_FAILURE() << "no device";
  return Load(directory, kv_dtype);
}

ModelRunner ModelRunner::LoadOnCuda(const std::string& directory) {
  auto device = MakeDevice(0, "cuda");
  auto model = Model::Load(*device, directory, {.kv_dtype = tensor::DType::kBF16});
  if (!model.ok()) ADD_FAILURE() << directory << ": " << model.status();
  return ModelRunner(std::move(device), *std::move(model), 64, 8);
}

ModelRunner ModelRunner::Random(const ModelConfig& config, tensor::DType weight_dtype,
                                tensor::DType kv_dtype, uint64_t seed,
                                const std::string& device_name) {
  auto device = MakeDevice(2, device_name);
  auto model = Model::Random(*device, config, weight_dtype, seed, {.kv_dtype = kv_dtype});
  if (!model.ok()) ADD_FAILURE() << model.status();
  return ModelRunner(std::move(device), *std::move(model), 64, 8);
}

ModelRunner::Sequence ModelRunner::NewSequence(int64_t max_tokens) {
  Sequence sequence;
  for (int64_t i = 0; i < kv_cache::KvLayout::NumBlocks(max_tokens); ++i) {
    if (free_blocks_.empty()) {
      ADD_FAILURE() << "no free blocks";
      break;
    }
    sequence.blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  if (pool_->layout().slab_bytes > 0) sequence.slab = next_slab_++;
  return sequence;
}

SequenceRows ModelRunner::Rows(Sequence& sequence, std::span<const int32_t> ids,
                               SequenceRows::Logits logits) {
  SequenceRows rows = {.token_ids = ids,
                       .first_position = sequence.length,
                       .blocks = sequence.blocks,
                       .slab = sequence.slab,
                       .logits = logits,
                       .want_selection = true};
  sequence.length += static_cast<int32_t>(ids.size());
  return rows;
}

StepOutput ModelRunner::Forward(const StepInput& input) {
  StepOutput output;
  const absl::Status status = model_->Forward(input, *pool_, &output);
  EXPECT_TRUE(status.ok()) << status;
  return output;
}

StepOutput ModelRunner::Step(Sequence& sequence, std::span<const int32_t> ids,
                             SequenceRows::Logits logits, bool want_selection) {
  StepInput input;
  input.sequences.push_back(Rows(sequence, ids, logits));
  input.sequences[0].want_selection = want_selection;
  return Forward(input);
}

int32_t ModelRunner::GreedyStep(Sequence& sequence, std::span<const int32_t> ids) {
  const kernels::SampleRow greedy;
  StepInput input;
  input.sequences.push_back(Rows(sequence, ids, SequenceRows::Logits::kLast));
  input.sequences[0].samples = {&greedy, 1};
  const StepOutput output = Forward(input);
  EXPECT_TRUE(output.logits.empty());
  EXPECT_EQ(output.sampled.size(), 1u);
  return output.sampled.empty() ? -1 : output.sampled[0].token_id;
}

Trace ModelRunner::Run(Sequence& sequence, std::span<const int32_t> ids, int chunk) {
  Trace trace;
  const size_t vocab = model_->config().vocab_size;
  for (size_t begin = 0; begin < ids.size(); begin += chunk) {
    const size_t rows = std::min<size_t>(chunk, ids.size() - begin);
    const StepOutput output = Step(sequence, ids.subspan(begin, rows));
    for (size_t row = 0; row < rows && output.logits.size() == rows * vocab; ++row) {
      trace.logits.emplace_back(output.logits.begin() + row * vocab,
                                output.logits.begin() + (row + 1) * vocab);
    }
    trace.selections.resize(begin + rows);
    if (!output.selections.empty()) trace.selections.back() = output.selections[0];
  }
  return trace;
}

double RelativeError(std::span<const float> out, std::span<const float> ref) {
  if (out.size() != ref.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double delta = static_cast<double>(out[i]) - ref[i];
    difference += delta * delta;
    norm += static_cast<double>(ref[i]) * ref[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<int32_t> RandomIds(int64_t count, int vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab);
  return ids;
}

}  // namespace hyserve::model
