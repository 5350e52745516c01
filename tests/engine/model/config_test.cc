// config.json: every class of fault has its own line that names the key; every fault is found in
// one pass; what is valid is read with its defaults.
#include "engine/model/config.h"

#include <functional>
#include <string>

#include "engine/model/config_check.h"
#include "engine/model/presets.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/test_files.h"

namespace hyserve::model {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

json Valid() {
  return json::parse(R"({
    "model_type": "hysparse", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "layer_types": ["full_attention", "sparse_attention", "sparse_attention", "full_attention"],
    "sparse_topk_tokens": 128, "sliding_window": 32, "max_position_embeddings": 4096
  })");
}

absl::StatusOr<ModelConfig> Parse(const json& root) {
  return ParseModelConfig(root.dump(), "config.json");
}

TEST(ConfigTest, ValidFileIsReadWithItsDefaults) {
  const auto config = Parse(Valid());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->vocab_size, 100);
  EXPECT_EQ(config->full.v_head_dim, 16);
  EXPECT_EQ(config->full.rotary_dim, 16);
  EXPECT_EQ(config->full.rope_theta, 640000.0);
  EXPECT_EQ(config->selected_blocks(), 2);
  EXPECT_TRUE(config->gate_sparse);
  EXPECT_FALSE(config->window_sink);
  EXPECT_EQ(config->layers[1].kv_source_layer, 0);
  EXPECT_TRUE(config->layers[0].is_oracle);
  EXPECT_FALSE(config->layers[3].is_oracle);
  EXPECT_TRUE(config->last_layer_prunable());
}

TEST(ConfigTest, PatternMirrorGivesTheSamePlan) {
  json root = Valid();
  root["hybrid_layer_pattern"] = {0, 2, 2, 0};
  EXPECT_TRUE(Parse(root).ok());
  root.erase("layer_types");
  ASSERT_TRUE(Parse(root).ok());
  EXPECT_EQ(*Parse(root), *Parse(Valid()));
}

TEST(ConfigTest, NullCountsAsAbsentAndMetadataIsIgnored) {
  json root = Valid();
  root["attention_value_scale"] = nullptr;
  root["bos_token_id"] = nullptr;
  root["quantization_config"] = nullptr;
  root["num_self_decoder_layers"] = nullptr;
  root["torch_dtype"] = "bfloat16";
  root["transformers_version"] = "4.57.1";
  root["hidden_act"] = "silu";
  root["use_cache"] = true;
  EXPECT_TRUE(Parse(root).ok()) << Parse(root).status();
}

TEST(ConfigTest, SlidingLayersHaveTheirOwnShape) {
  json root = Valid();
  root["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                         "sparse_attention"};
  root["swa_num_attention_heads"] = 2;
  root["swa_num_key_value_heads"] = 1;
  root["swa_head_dim"] = 8;
  root["swa_rope_theta"] = 10000;
  const auto config = Parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->sliding.num_heads, 2);
  EXPECT_EQ(config->sliding.head_dim, 8);
  EXPECT_EQ(config->sliding.rotary_dim, 8);
  EXPECT_EQ(config->sliding.rope_theta, 10000);
  EXPECT_EQ(config->layers[3].kv_source_layer, 1);
}

TEST(ConfigTest, PartialRotaryIsCutToAnInteger) {
  json root = Valid();
  root["head_dim"] = 192;
  root["v_head_dim"] = 128;
  root["partial_rotary_factor"] = 0.334;
  ASSERT_TRUE(Parse(root).ok());
  EXPECT_EQ(Parse(root)->full.rotary_dim, 64);
}

TEST(ConfigTest, EndTokensAreOneNumberOrAList) {
  json root = Valid();
  root["eos_token_id"] = 3;
  EXPECT_THAT(Parse(root)->eos_token_ids, ::testing::ElementsAre(3));
  root["eos_token_id"] = {3, 7};
  EXPECT_THAT(Parse(root)->eos_token_ids, ::testing::ElementsAre(3, 7));
}

struct Fault {
  const char* name;
  std::function<void(json&)> inject;
  const char* line;  // expected in the message
};

class ConfigFaultTest : public ::testing::TestWithParam<Fault> {};

TEST_P(ConfigFaultTest, IsRefusedByName) {
  json root = Valid();
  GetParam().inject(root);
  const auto config = Parse(root);
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().line));
}

const Fault kFaults[] = {
    {"MissingType", [](json& r) { r.erase("model_type"); }, "config.json: model_type: must be"},
    {"HySparse2", [](json& r) { r["model_type"] = "hysparse2"; },
     "model_type: hysparse2 is not implemented"},
    {"MissingVocab", [](json& r) { r.erase("vocab_size"); }, "vocab_size: missing"},
    {"NegativeHidden", [](json& r) { r["hidden_size"] = -4; }, "hidden_size: must be between"},
    {"FloatHidden", [](json& r) { r["hidden_size"] = 64.0; },
     "hidden_size: must be an integer of 32 bits; got 64.0"},
    {"HugeVocab", [](json& r) { r["vocab_size"] = 99999999999; }, "vocab_size: must be an integer"},
    {"TextHeads", [](json& r) { r["num_attention_heads"] = "4"; },
     "num_attention_heads: must be an integer"},
    {"HeadsNotDivisible", [](json& r) { r["num_key_value_heads"] = 3; },
     "num_attention_heads: must be a multiple of num_key_value_heads (3); got 4"},
    {"ZeroKvHeads", [](json& r) { r["num_key_value_heads"] = 0; }, "num_key_value_heads: must be"},
    {"HeadDimOverflow",
     [](json& r) {
       r["num_attention_heads"] = 4096;
       r["head_dim"] = 1024;
     },
     "head_dim: heads x head_dim must be at most"},
    {"LayerCount", [](json& r) { r["num_hidden_layers"] = 5; },
     "layer_types: must have one entry per layer (5); has 4"},
    {"LayerName", [](json& r) { r["layer_types"][1] = "linear_attention"; },
     "layer_types: layer 1: unknown type \"linear_attention\""},
    {"NoPlan", [](json& r) { r.erase("layer_types"); }, "layer_types: missing"},
    {"PatternDiffers", [](json& r) { r["hybrid_layer_pattern"] = {0, 2, 0, 0}; },
     "hybrid_layer_pattern: differs from layer_types at layer 2"},
    {"PatternCode", [](json& r) { r["hybrid_layer_pattern"] = {0, 2, 3, 0}; },
     "hybrid_layer_pattern: layer 2: must be 0, 1 or 2; got 3"},
    {"SparseFirst",
     [](json& r) { r["layer_types"][0] = "sparse_attention"; },
     "kv_source_layer: sparse layer 0 must read a full layer before it"},
    {"SourceNotFull", [](json& r) { r["kv_source_layer"] = {-1, 0, 1, -1}; },
     "kv_source_layer: sparse layer 2 must read a full layer before it; got 1"},
    {"SourceLater", [](json& r) { r["kv_source_layer"] = {-1, 3, 0, -1}; },
     "kv_source_layer: sparse layer 1 must read a full layer before it; got 3"},
    {"SourceOfFull", [](json& r) { r["kv_source_layer"] = {-1, 0, 0, 0}; },
     "kv_source_layer: layer 3 is not sparse"},
    {"SourceMissing", [](json& r) { r["kv_source_layer"] = {-1, -1, 0, -1}; },
     "kv_source_layer: sparse layer 1 must name the full layer it reads"},
    {"NoFullLayer",
     [](json& r) {
       r["layer_types"] = json::array({"sliding_attention", "sliding_attention",
                                       "sliding_attention", "sliding_attention"});
     },
     "layer_types: must have at least one full_attention layer"},
    {"BlockSize", [](json& r) { r["sparse_block_size"] = 32; },
     "sparse_block_size: must be 64; got 32"},
    {"BudgetNotWhole", [](json& r) { r["sparse_topk_tokens"] = 100; },
     "sparse_topk_tokens: must be a multiple of 64"},
    {"BudgetTooLarge", [](json& r) { r["sparse_topk_tokens"] = 8192; },
     "sparse_topk_tokens: must be a multiple of 64 between 64 and 4096"},
    {"WindowZero", [](json& r) { r["sliding_window"] = 0; }, "sliding_window: must be between 1"},
    {"WindowAlias", [](json& r) { r["sliding_window_size"] = 127; },
     "sliding_window_size: refused: ambiguous"},
    {"OddRotary", [](json& r) { r["partial_rotary_factor"] = 0.2; },
     "partial_rotary_factor: gives 3 rotary dims"},
    {"WideRotary", [](json& r) { r["partial_rotary_factor"] = 2; },
     "partial_rotary_factor: gives 32 rotary dims of head_dim 16"},
    {"HugeRotary", [](json& r) { r["partial_rotary_factor"] = 1e300; }, "partial_rotary_factor:"},
    {"RopeTheta", [](json& r) { r["rope_theta"] = -1; }, "rope_theta: must be a positive number"},
    {"RopeScaling", [](json& r) { r["rope_scaling"] = {{"type", "yarn"}}; },
     "rope_scaling: refused"},
    {"RopeKinds", [](json& r) { r["rope_layer_types"] = {"full_attention"}; },
     "rope_layer_types: must name sparse_attention"},
    {"Epsilon", [](json& r) { r["layernorm_epsilon"] = 0; }, "layernorm_epsilon: must be between"},
    {"RmsNormEps", [](json& r) { r["rms_norm_eps"] = 1e-6; },
     "rms_norm_eps: refused: use layernorm_epsilon"},
    {"FullGate", [](json& r) { r["attn_output_gate"] = {{"full", true}}; },
     "attn_output_gate.full: must be false"},
    {"GateUnknown", [](json& r) { r["attn_output_gate"] = {{"dense", true}}; },
     "attn_output_gate.dense: unknown key"},
    {"GateGranularity", [](json& r) { r["attn_gate_granularity"] = "layer"; },
     "attn_gate_granularity: must be"},
    {"FullSink", [](json& r) { r["add_full_attention_sink_bias"] = true; },
     "add_full_attention_sink_bias: must be false"},
    {"Bias", [](json& r) { r["attention_bias"] = true; }, "attention_bias: must be false"},
    {"QkNorm", [](json& r) { r["use_qk_norm"] = true; }, "use_qk_norm: must be false"},
    {"ForcedBlocks", [](json& r) { r["force_local_blocks"] = 1; }, "force_local_blocks: must be 0"},
    {"ForcedLocal", [](json& r) { r["sparse_forced_local"] = 128; },
     "sparse_forced_local: must be 0"},
    {"HeadReduce", [](json& r) { r["index_head_reduce"] = "sum"; },
     "index_head_reduce: must be \"max\""},
    {"Granularity", [](json& r) { r["sparse_granularity"] = "token"; },
     "sparse_granularity: must be \"block\""},
    {"NoSwaBranch", [](json& r) { r["sparse_swa_branch"] = false; },
     "sparse_swa_branch: must be true"},
    {"Bridge", [](json& r) { r["bridge_source_layer"] = {-1, 0, -1, -1}; },
     "bridge_source_layer: refused"},
    {"Streams", [](json& r) { r["hc_streams"] = 4; }, "hc_streams: must be 1"},
    {"Activation", [](json& r) { r["hidden_act"] = "gelu"; }, "hidden_act: must be \"silu\""},
    {"Quantised", [](json& r) { r["quantization_config"] = {{"bits", 8}}; },
     "quantization_config: refused"},
    {"Mtp", [](json& r) { r["num_nextn_predict_layers"] = 1; },
     "num_nextn_predict_layers: must be"},
    {"SharedExperts", [](json& r) { r["n_shared_experts"] = 1; }, "n_shared_experts: must be 0"},
    {"Groups", [](json& r) { r["n_group"] = 8; }, "n_group: must be 1"},
    {"WindowHeads", [](json& r) { r["swa_num_key_value_heads"] = 4; },
     "swa_num_key_value_heads: must be 2"},
    {"NoDenseWidth", [](json& r) { r.erase("intermediate_size"); },
     "intermediate_size: must be between 1"},
    {"MoeWithoutExperts", [](json& r) { r["moe_layer_freq"] = {0, 1, 1, 1}; },
     "n_routed_experts: must be between 1"},
    {"MoeTooManyActive",
     [](json& r) {
       r["moe_layer_freq"] = {0, 1, 1, 1};
       r["n_routed_experts"] = 4;
       r["num_experts_per_tok"] = 5;
       r["moe_intermediate_size"] = 16;
     },
     "num_experts_per_tok: must be between 1 and 4; got 5"},
    {"MoeLength", [](json& r) { r["moe_layer_freq"] = {0, 1}; },
     "moe_layer_freq: must have one entry per layer (4); has 2"},
    {"TopkMethod", [](json& r) { r["topk_method"] = "group"; }, "topk_method: must be"},
    {"EosRange", [](json& r) { r["eos_token_id"] = {0, 100}; },
     "eos_token_id: must be below vocab_size (100); got 100"},
    {"ValueScale", [](json& r) { r["attention_value_scale"] = 0; },
     "attention_value_scale: must be a positive number"},
    {"Unknown", [](json& r) { r["frobnicate"] = 1; }, "frobnicate: unknown key"},
    {"Misspelt", [](json& r) { r["hiden_size"] = 64; },
     "hiden_size: unknown key; did you mean hidden_size?"},
    {"MisspeltNull", [](json& r) { r["vocab_sizes"] = nullptr; }, "vocab_sizes: unknown key"},
    {"TooLarge",
     [](json& r) {
       r["hidden_size"] = 131072;
       r["intermediate_size"] = 1048576;
       r["num_hidden_layers"] = 1024;
       r["layer_types"] = std::vector<std::string>(1024, "full_attention");
     },
     "parameters"},
};

INSTANTIATE_TEST_SUITE_P(All, ConfigFaultTest, ::testing::ValuesIn(kFaults),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ConfigTest, AllFaultsAreNamedAtOnceAndEachKeyOnce) {
  json root = Valid();
  root["vocab_size"] = "many";
  root["sparse_block_size"] = 32;
  root["rope_scaling"] = 1;
  root["frobnicate"] = 1;
  const std::string message(Parse(root).status().message());
  EXPECT_THAT(message, HasSubstr("config.json: vocab_size: must be an integer"));
  EXPECT_THAT(message, HasSubstr("\nconfig.json: sparse_block_size:"));
  EXPECT_THAT(message, HasSubstr("config.json: rope_scaling:"));
  EXPECT_THAT(message, HasSubstr("config.json: frobnicate:"));
  EXPECT_THAT(message, Not(HasSubstr("vocab_size: must be between")));
}

TEST(ConfigTest, FaultsOfTheJsonItselfAreOneLine) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "not valid JSON"},
      {"[]", "must be a JSON object"},
      {"{\"a\": 1, \"a\": 2}", "key \"a\" appears twice"},
      {"\xef\xbb\xbf{}", "byte order mark"},
      {std::string("{}\0x", 4), "NUL byte"},
      {"{} x", "not valid JSON"},
      {"{\"a\": \"\xff\"}", "not valid JSON"},
      {"{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}", "nested deeper"},
      {std::string(2 << 20, ' ') + "{}", "larger than"},
      {"{\"a\": NaN}", "not valid JSON"},
  };
  for (const auto& [text, reason] : cases) {
    const auto config = ParseModelConfig(text, "config.json");
    ASSERT_FALSE(config.ok());
    const std::string message(config.status().message());
    EXPECT_THAT(message, HasSubstr(reason));
    EXPECT_THAT(message, Not(HasSubstr("\n")));
  }
}

TEST(ConfigTest, NestedKeysMayRepeatInDifferentObjects) {
  json root = Valid();
  root["id2label"] = {{"sliding", 1}};
  root["attn_output_gate"] = {{"sliding", false}, {"sparse", true}};
  EXPECT_TRUE(Parse(root).ok()) << Parse(root).status();
}

TEST(ConfigTest, MissingDirectoryIsNotFoundAndAPipeIsRefused) {
  TempDir dir;
  EXPECT_EQ(ReadModelConfig(dir.path()).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directory(dir.File("config.json"));
  EXPECT_EQ(ReadModelConfig(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ConfigTest, GoldenConfigsAreValid) {
  int found = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(HYSERVE_SOURCE_DIR "/tests/golden")) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    ++found;
    EXPECT_TRUE(ReadModelConfig(entry.path().string()).ok())
        << entry.path() << ": " << ReadModelConfig(entry.path().string()).status();
  }
  EXPECT_GE(found, 9);
}

}  // namespace
}  // namespace hyserve::model
