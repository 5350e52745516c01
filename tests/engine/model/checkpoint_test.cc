// Checkpoint directories: complete ones load the same however they are cut into files, and every
// fault of the files is refused by name before a weight is read.
#include "engine/model/checkpoint.h"

#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/model/config_json.h"
#include "engine/model/presets.h"
#include "engine/model/random_weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/test_files.h"

namespace hyserve::model {
namespace {

using ::testing::HasSubstr;
using tensor::DType;

ModelConfig SmallConfig() {
  ModelConfig config = *Preset("tiny");
  config.vocab_size = 20;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  return config;
}

struct StoredTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A checkpoint in memory, to be spoilt and written.
class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RandomWeights weights(config_, DType::kF32, 1);
    for (const TensorSpec& spec : AllTensors(config_)) {
      std::string bytes(spec.num_elements() * 4, '\0');
      ASSERT_TRUE(weights.Read(spec, bytes.data()).ok());
      tensors_.push_back({spec.name, "F32", spec.shape, std::move(bytes)});
    }
  }

  StoredTensor& Tensor(const std::string& name) {
    for (StoredTensor& tensor : tensors_) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return tensors_[0];
  }

  static void WriteShard(const std::string& path, const std::vector<StoredTensor>& tensors) {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const StoredTensor& tensor : tensors) {
      const size_t begin = data.size();
      data += tensor.bytes;
      header[tensor.name] = {{"dtype", tensor.dtype},
                             {"shape", tensor.shape},
                             {"data_offsets", {begin, data.size()}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    WriteFile(path, SafetensorsBytes(text, data));
  }

  void WriteSingle() { WriteShard(dir_.File("model.safetensors"), tensors_); }

  // Every second tensor into the second shard.
  nlohmann::json WriteShards() {
    std::vector<StoredTensor> shards[2];
    nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
    size_t total = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      shards[i % 2].push_back(tensors_[i]);
      index["weight_map"][tensors_[i].name] = i % 2 == 0 ? "s1.safetensors" : "s2.safetensors";
      total += tensors_[i].bytes.size();
    }
    index["metadata"]["total_size"] = total;
    WriteShard(dir_.File("s1.safetensors"), shards[0]);
    WriteShard(dir_.File("s2.safetensors"), shards[1]);
    WriteIndex(index);
    return index;
  }
  void WriteIndex(const nlohmann::json& index) {
    WriteFile(dir_.File("model.safetensors.index.json"), index.dump());
  }

  // Opens and reads everything; the digest.
  absl::StatusOr<std::string> ReadAll() {
    auto checkpoint = Checkpoint::Open(dir_.path(), config_, /*check_finite=*/true);
    if (!checkpoint.ok()) return checkpoint.status();
    for (const TensorSpec& spec : AllTensors(config_)) {
      std::vector<float> data(spec.num_elements());
      if (absl::Status status = (*checkpoint)->Read(spec, data.data()); !status.ok()) return status;
    }
    return (*checkpoint)->Finish();
  }
  std::string Error() { return std::string(ReadAll().status().message()); }

  const ModelConfig config_ = SmallConfig();
  TempDir dir_;
  std::vector<StoredTensor> tensors_;
};

TEST_F(CheckpointTest, ShardsGiveTheSameDigestAsOneFile) {
  WriteSingle();
  const auto single = ReadAll();
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ(single->size(), 32u);
  std::filesystem::remove(dir_.File("model.safetensors"));
  WriteShards();
  const auto sharded = ReadAll();
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ(*single, *sharded);
}

TEST_F(CheckpointTest, DigestCoversEveryTensor) {
  WriteSingle();
  const std::string before = *ReadAll();
  for (const char* name : {"lm_head.weight", "model.layers.1.self_attn.attention_sink_bias"}) {
    std::string& bytes = Tensor(name).bytes;
    bytes[0] = static_cast<char>(bytes[0] ^ 1);
    WriteSingle();
    EXPECT_NE(*ReadAll(), before) << name;
    bytes[0] = static_cast<char>(bytes[0] ^ 1);
  }
  WriteSingle();
  EXPECT_EQ(*ReadAll(), before);
}

TEST_F(CheckpointTest, NoWeightsAndTwoKindsOfWeights) {
  EXPECT_EQ(ReadAll().status().code(), absl::StatusCode::kNotFound);
  WriteSingle();
  WriteShards();
  EXPECT_THAT(Error(), HasSubstr("both model.safetensors and model.safetensors.index.json"));
}

TEST_F(CheckpointTest, MissingUnknownAndMisshapenTensorsAreAllNamed) {
  Tensor("model.layers.0.mlp.up_proj.weight").name = "model.layers.0.mlp.upp_proj.weight";
  std::swap(Tensor("lm_head.weight").shape[0], Tensor("lm_head.weight").shape[1]);
  StoredTensor& norm = Tensor("model.norm.weight");
  norm.dtype = "I32";
  WriteSingle();
  const std::string error = Error();
  EXPECT_THAT(error, HasSubstr("tensor \"model.layers.0.mlp.up_proj.weight\": missing"));
  EXPECT_THAT(error, HasSubstr("tensor \"model.layers.0.mlp.upp_proj.weight\": does not belong"));
  EXPECT_THAT(error, HasSubstr("model.safetensors: tensor \"lm_head.weight\": shape must be "
                               "[20, 16]; is [16, 20]"));
  EXPECT_THAT(error, HasSubstr("tensor \"model.norm.weight\": dtype must be F32, BF16 or F16"));
}

TEST_F(CheckpointTest, ManyFaultsAreCounted) {
  tensors_.erase(tensors_.begin() + 1, tensors_.end());
  WriteSingle();
  EXPECT_THAT(Error(), HasSubstr("\nand "));
}

TEST_F(CheckpointTest, NanAndInfinityAreCountedByTensor) {
  StoredTensor& tensor = Tensor("model.layers.2.self_attn.q_proj.weight");
  const float bad[3] = {std::numeric_limits<float>::quiet_NaN(),
                        std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity()};
  std::memcpy(tensor.bytes.data() + 8, bad, sizeof(bad));
  WriteSingle();
  EXPECT_THAT(Error(), HasSubstr("model.safetensors: tensor "
                                 "\"model.layers.2.self_attn.q_proj.weight\": weights contain 3 "
                                 "NaN or infinite values"));
  auto unchecked = Checkpoint::Open(dir_.path(), config_, /*check_finite=*/false);
  ASSERT_TRUE(unchecked.ok());
  for (const TensorSpec& spec : AllTensors(config_)) {
    std::vector<float> data(spec.num_elements());
    EXPECT_TRUE((*unchecked)->Read(spec, data.data()).ok());
  }
}

TEST_F(CheckpointTest, FileChangedDuringLoadIsNoticed) {
  WriteSingle();
  auto checkpoint = Checkpoint::Open(dir_.path(), config_, true);
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::last_write_time(
      dir_.File("model.safetensors"),
      std::filesystem::last_write_time(dir_.File("model.safetensors")) + std::chrono::seconds(1));
  EXPECT_EQ((*checkpoint)->Finish().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, ShardNamesMustBePlain) {
  nlohmann::json index = WriteShards();
  for (const char* name : {"../s1.safetensors", "/etc/passwd", "sub/s1.safetensors", "",
                           "..", ".safetensors", "s1.bin", "s1\n.safetensors"}) {
    index["weight_map"]["lm_head.weight"] = name;
    WriteIndex(index);
    EXPECT_THAT(Error(), HasSubstr("is not a plain file name")) << name;
    EXPECT_EQ(Error().find('\n'), std::string::npos);
  }
}

TEST_F(CheckpointTest, ShardBehindASymbolicLinkOutOfTheDirectory) {
  WriteShards();
  TempDir elsewhere;
  std::filesystem::rename(dir_.File("s2.safetensors"), elsewhere.File("s2.safetensors"));
  EXPECT_EQ(ReadAll().status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_symlink(elsewhere.File("s2.safetensors"), dir_.File("s2.safetensors"));
  EXPECT_THAT(Error(), HasSubstr("s2.safetensors: a symbolic link that leads out"));
  std::filesystem::remove(dir_.File("s2.safetensors"));
  std::filesystem::rename(elsewhere.File("s2.safetensors"), dir_.File("real.safetensors"));
  std::filesystem::create_symlink("real.safetensors", dir_.File("s2.safetensors"));
  EXPECT_TRUE(ReadAll().ok()) << ReadAll().status();
}

TEST_F(CheckpointTest, IndexAndShardsMustAgree) {
  nlohmann::json index = WriteShards();
  index["weight_map"]["ghost"] = "s1.safetensors";
  index["weight_map"].erase("lm_head.weight");
  index["weight_map"]["model.norm.weight"] =
      index["weight_map"]["model.norm.weight"] == "s1.safetensors" ? "s2.safetensors"
                                                                   : "s1.safetensors";
  index["metadata"]["total_size"] = 12;
  WriteIndex(index);
  const std::string error = Error();
  EXPECT_THAT(error, HasSubstr("tensor \"ghost\": is not in s1.safetensors"));
  EXPECT_THAT(error, HasSubstr("tensor \"lm_head.weight\": is not in model.safetensors.index"));
  EXPECT_THAT(error, HasSubstr("tensor \"model.norm.weight\": is in s"));
  EXPECT_THAT(error, HasSubstr("metadata.total_size: 12, but the shards hold"));
}

TEST_F(CheckpointTest, TensorInTwoShards) {
  WriteShards();
  WriteShard(dir_.File("s2.safetensors"), tensors_);
  EXPECT_THAT(Error(), HasSubstr("s2.safetensors: tensor \"model.embed_tokens.weight\": is in "
                                 "s1.safetensors too"));
}

TEST_F(CheckpointTest, IndexFaults) {
  const std::pair<const char*, const char*> cases[] = {
      {"{}", "weight_map: must be an object"},
      {R"({"weight_map": {}})", "weight_map: must be an object"},
      {R"({"weight_map": {"a": 1}})", "must name a file"},
      {R"({"weight_map": {"a": "s.safetensors"}, "metadata": 3})", "metadata: must be an object"},
      {R"({"weight_map": {"a": "s.safetensors"}, "metadata": {"total_size": -1}})",
       "metadata.total_size"},
      {R"({"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}})", "appears twice"},
      {"{\"weight_map\": ", "not valid JSON"}};
  for (const auto& [text, reason] : cases) {
    WriteFile(dir_.File("model.safetensors.index.json"), text);
    EXPECT_THAT(Error(), HasSubstr(reason)) << text;
  }
}

TEST(RandomWeightsTest, AnyPartIsTheSameAndSeedAndNameMatter) {
  const ModelConfig config = SmallConfig();
  const TensorSpec spec = {"t", {1 << 11, 1 << 10}, 0.5f, 2.0f};  // several pieces
  std::vector<float> first(spec.num_elements()), again(spec.num_elements());
  ASSERT_TRUE(RandomWeights(config, DType::kF32, 7).Read(spec, first.data()).ok());
  ASSERT_TRUE(RandomWeights(config, DType::kF32, 7).Read(spec, again.data()).ok());
  EXPECT_EQ(first, again);
  double sum = 0, squares = 0;
  for (const float value : first) {
    sum += value;
    squares += (value - 0.5) * (value - 0.5);
  }
  const double count = static_cast<double>(first.size());
  EXPECT_NEAR(sum / count, 0.5, 0.01);
  EXPECT_NEAR(squares / count, 4.0, 0.02);
  ASSERT_TRUE(RandomWeights(config, DType::kF32, 8).Read(spec, again.data()).ok());
  EXPECT_NE(first, again);
  TensorSpec other = spec;
  other.name = "u";
  ASSERT_TRUE(RandomWeights(config, DType::kF32, 7).Read(other, again.data()).ok());
  EXPECT_NE(first, again);
}

TEST(RandomWeightsTest, WrittenCheckpointHoldsTheSameWeights) {
  const ModelConfig config = SmallConfig();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    TempDir parent;
    const std::string directory = parent.File("made");
    ASSERT_TRUE(WriteCheckpoint(config, 3, dtype, directory).ok());
    const auto read = ReadModelConfig(directory);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, config);
    auto checkpoint = Checkpoint::Open(directory, config, true);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    RandomWeights weights(config, dtype, 3);
    for (const TensorSpec& spec : AllTensors(config)) {
      EXPECT_EQ((*checkpoint)->DTypeOf(spec), dtype);
      std::vector<char> a(spec.num_elements() * SizeOf(dtype)), b(a.size());
      ASSERT_TRUE((*checkpoint)->Read(spec, a.data()).ok());
      ASSERT_TRUE(weights.Read(spec, b.data()).ok());
      EXPECT_EQ(a, b) << spec.name;
    }
    EXPECT_EQ(WriteCheckpoint(config, 3, dtype, directory).code(),
              absl::StatusCode::kAlreadyExists);
    EXPECT_TRUE(Checkpoint::Open(directory, config, true).ok());
  }
}

}  // namespace
}  // namespace hyserve::model
