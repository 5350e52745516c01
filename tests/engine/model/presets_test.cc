// Presets against the numbers of the HySparse papers and of the checkpoint conventions.
#include "engine/model/presets.h"

#include <algorithm>

#include "engine/model/config_check.h"
#include "engine/model/config_json.h"
#include "engine/model/inspect.h"
#include "engine/model/layout.h"
#include "engine/model/tensor_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hyserve::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tensor::DType;

kv_cache::KvLayout LayoutOf(std::string_view name) {
  return MakeKvLayout(*Preset(name), DType::kBF16, "digest");
}

class EveryPresetTest : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryPresetTest, IsValidAndSurvivesConfigJson) {
  const auto config = Preset(GetParam());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(CheckModelConfig(*config, "preset").ok()) << CheckModelConfig(*config, "preset");
  const auto read = ParseModelConfig(ConfigToJson(*config, "bfloat16"), "config.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, *config);
  EXPECT_FALSE(InspectText(*config, {}).empty());
}

TEST_P(EveryPresetTest, CountsAgreeWithTheTensorPlan) {
  const ModelConfig config = *Preset(GetParam());
  int64_t elements = 0;
  for (const TensorSpec& spec : AllTensors(config)) elements += spec.num_elements();
  EXPECT_EQ(CountParameters(config).total, elements);
  EXPECT_LE(CountParameters(config).active, elements);
  const kv_cache::KvLayout layout = MakeKvLayout(config, DType::kBF16, "");
  EXPECT_EQ(static_cast<int64_t>(layout.block_bytes()), PageValuesPerToken(config) * 64 * 2);
  EXPECT_EQ(static_cast<int64_t>(layout.slab_bytes), RingValues(config) * 2);
}

INSTANTIATE_TEST_SUITE_P(All, EveryPresetTest, ::testing::ValuesIn(PresetNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !isalnum(c); }, '_');
                           return name;
                         });

TEST(PresetsTest, UnknownNameListsTheNames) {
  const auto config = Preset("80b");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("80b-a3b-swa"));
  EXPECT_FALSE(Preset("tiny-half").ok());
}

TEST(PresetsTest, LayerPlans) {
  EXPECT_EQ(LayerPlanText(*Preset("80b-a3b")), "F 11S F 11S F 11S F 11S F");
  EXPECT_EQ(LayerPlanText(*Preset("7b")),
            "F 3S F 3S F 3S F 3S F 3S F 3S F 3S F 3S F 2S F");
  EXPECT_EQ(LayerPlanText(*Preset("demo")), "F 3S F 3S F");
  EXPECT_EQ(LayerPlanText(*Preset("80b-a3b-full")), "49F");
  EXPECT_EQ(LayerPlanText(*Preset("7b-swa")),
            "F 3W F 3W F 3W F 3W F 3W F 3W F 3W F 3W F 2W F");
  EXPECT_THAT(LayoutOf("80b-a3b").full_layers, ElementsAre(0, 12, 24, 36, 48));
  EXPECT_THAT(LayoutOf("80b-a3b").oracle_slots, ElementsAre(0, 1, 2, 3));
}

// The sizes of the 80B hand-off in bf16.
TEST(PresetsTest, HandoffOf80B) {
  const kv_cache::KvLayout layout = LayoutOf("80b-a3b");
  EXPECT_EQ(PageValuesPerToken(*Preset("80b-a3b")), 6400);
  EXPECT_EQ(RingValues(*Preset("80b-a3b")), 7208960);
  EXPECT_EQ(layout.block_bytes(), 819200u);
  EXPECT_EQ(layout.block_bytes() / kv_cache::kTokensPerBlock, 12800u);
  EXPECT_EQ(layout.slab_bytes, 14417920u);
  EXPECT_EQ(layout.selection_bytes(), 1024u);
  EXPECT_EQ(layout.HandoffBytes(32768), 512u * 819200 + 14417920 + 1024);
  EXPECT_EQ(layout.HandoffBytes(32769), 513u * 819200 + 14417920 + 1024);
  EXPECT_EQ(layout.FullAttentionBytes(64), 819200u / 5 * 49);
}

// Values per token and per window, with T = 2^20 and one byte per value: 6.72 GB, as published.
TEST(PresetsTest, CacheTable) {
  struct Row {
    const char* name;
    int64_t per_token, window;
  };
  for (const Row& row : {Row{"7b-full", 73728, 0}, Row{"7b", 20480, 6815744},
                         Row{"7b-swa", 20480, 6815744}, Row{"80b-a3b-full", 62720, 0},
                         Row{"80b-a3b", 6400, 7208960}}) {
    EXPECT_EQ(PageValuesPerToken(*Preset(row.name)), row.per_token) << row.name;
    EXPECT_EQ(RingValues(*Preset(row.name)), row.window) << row.name;
  }
  const double bytes = 6400.0 * (1 << 20) + 7208960;
  EXPECT_NEAR(bytes / 1e9, 6.72, 0.005);

  ModelConfig narrow = *Preset("80b-a3b");
  narrow.full.head_dim = 128;
  EXPECT_EQ(PageValuesPerToken(narrow), 5120);
  EXPECT_EQ(RingValues(narrow), 5767168);
}

TEST(PresetsTest, ParameterCounts) {
  const auto billions = [](int64_t count) { return static_cast<double>(count) / 1e9; };
  EXPECT_NEAR(billions(CountParameters(*Preset("7b")).total), 7.63, 0.01);
  EXPECT_NEAR(billions(CountParameters(*Preset("7b")).active), 7.01, 0.01);
  EXPECT_NEAR(billions(CountParameters(*Preset("80b-a3b")).total), 80.2, 0.1);
  EXPECT_NEAR(billions(CountParameters(*Preset("80b-a3b")).active), 3.82, 0.01);
  EXPECT_NEAR(billions(CountParameters(*Preset("80b-a3b-full")).total), 80.2, 0.1);
  EXPECT_NEAR(billions(CountParameters(*Preset("0.3b-full")).total), 0.287, 0.002);
}

TEST(PresetsTest, InspectSaysWhatIsShipped) {
  const int64_t tokens[] = {32768};
  const std::string text = InspectText(*Preset("80b-a3b"), {.handoff_tokens = tokens});
  EXPECT_THAT(text, HasSubstr("KV per token          12,800 B in bf16\n"));
  EXPECT_THAT(text, HasSubstr("KV block              819,200 B (64 tokens)\n"));
  EXPECT_THAT(text, HasSubstr("window slab           14,417,920 B per sequence\n"));
  EXPECT_THAT(text, HasSubstr("selection shipped     1,024 B per hand-off\n"));
  EXPECT_THAT(text, HasSubstr("hand-off of 32,768"));
  EXPECT_THAT(text, HasSubstr("9.47 times as much"));
}

TEST(PresetsTest, LayoutOfMixedPlanHasARingPerWindowLayer) {
  ModelConfig config = *Preset("tiny-swa");
  config.sliding.num_kv_heads = 1;
  config.sliding.head_dim = 8;
  config.sliding.rotary_dim = 8;
  const kv_cache::KvLayout layout = MakeKvLayout(config, DType::kF32, "");
  ASSERT_EQ(layout.rings.size(), 2u);
  EXPECT_EQ(layout.rings[1].layer_index, 2);
  EXPECT_EQ(layout.rings[1].k_offset_bytes, 64u * (8 + 16) * 4);
  EXPECT_EQ(layout.rings[1].v_offset_bytes, 64u * (8 + 16) * 4 + 64 * 8 * 4);
  EXPECT_EQ(layout.slab_bytes, 2u * 64 * (8 + 16) * 4);
  EXPECT_EQ(layout.selection_bytes(), 0u);
}

TEST(PresetsTest, FingerprintTellsLayoutsApart) {
  const kv_cache::KvLayout layout = LayoutOf("demo");
  kv_cache::KvLayout other = layout;
  EXPECT_EQ(layout.Fingerprint(), other.Fingerprint());
  other.model_digest = "another";
  EXPECT_NE(layout.Fingerprint(), other.Fingerprint());
  other = layout;
  other.dtype = DType::kF32;
  EXPECT_NE(layout.Fingerprint(), other.Fingerprint());
  other = layout;
  other.rings[0].v_offset_bytes += 2;
  EXPECT_NE(layout.Fingerprint(), other.Fingerprint());
}

}  // namespace
}  // namespace hyserve::model
