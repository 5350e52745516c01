// SampleTokens against a plain reference, on every device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/kernels/ops.h"
#include "tests/engine/kernels/sample_tokens_reference.h"
#include "tests/engine/kernels/test_device.h"

namespace hyserve::kernels::testing {
namespace {

using ::testing::ElementsAre;
using tensor::DType;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kLastUniform = 1 - 0x1p-53;

// The rows of one call.
struct Batch {
  int64_t vocab_size = 0;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<LogitEdit> edits;

  void Add(const std::vector<float>& row_logits, SampleRow row,
           const std::vector<LogitEdit>& row_edits = {}) {
    vocab_size = static_cast<int64_t>(row_logits.size());
    logits.insert(logits.end(), row_logits.begin(), row_logits.end());
    row.first_edit = static_cast<int32_t>(edits.size());
    row.num_edits = static_cast<int32_t>(row_edits.size());
    edits.insert(edits.end(), row_edits.begin(), row_edits.end());
    rows.push_back(row);
  }
};

class SampleTokensParity : public ::testing::TestWithParam<tensor::DeviceOptions> {
 protected:
  SampleTokensParity() : device_(std::make_unique<TestDevice>(GetParam())) {}

  std::vector<SampledRow> Run(const Batch& batch) {
    device_ = std::make_unique<TestDevice>(GetParam());  // frees the last call's arrays
    const auto num_rows = static_cast<int64_t>(batch.rows.size());
    SampledRow* out = device_->UploadArray(std::vector<SampledRow>(num_rows, Unwritten()));
    const absl::Status status = SampleTokens(
        device_->get(), {.logits = device_->Upload(batch.logits, num_rows, batch.vocab_size,
                                                   DType::kF32),
                         .rows = device_->UploadArray(batch.rows),
                         .edits = batch.edits.empty() ? nullptr
                                                      : device_->UploadArray(batch.edits),
                         .out = out});
    EXPECT_TRUE(status.ok()) << status;
    return device_->DownloadArray(out, num_rows);
  }
  SampledRow RunOne(const std::vector<float>& logits, const SampleRow& row,
                    const std::vector<LogitEdit>& edits = {}) {
    Batch batch;
    batch.Add(logits, row, edits);
    return Run(batch).front();
  }
  int32_t TokenOf(const std::vector<float>& logits, const SampleRow& row = {},
                  const std::vector<LogitEdit>& edits = {}) {
    return RunOne(logits, row, edits).token_id;
  }
  // How often each token is chosen with `count` evenly spaced uniform numbers.
  std::map<int32_t, int> Counts(const std::vector<float>& logits, SampleRow row, int count) {
    Batch batch;
    for (int i = 0; i < count; ++i) {
      row.uniform = (i + 0.5) / count;
      batch.Add(logits, row);
    }
    std::map<int32_t, int> counts;
    for (const SampledRow& sampled : Run(batch)) ++counts[sampled.token_id];
    return counts;
  }
  // The tokens that can be chosen, but for rarer ones than 1 in 400.
  std::vector<int32_t> Choices(const std::vector<float>& logits, const SampleRow& row) {
    std::vector<int32_t> ids;
    for (const auto& [id, count] : Counts(logits, row, 400)) ids.push_back(id);
    return ids;
  }

 private:
  static SampledRow Unwritten() {
    SampledRow row = {.token_id = -7, .logprob = kNan, .num_top = -7};
    std::fill_n(row.top_ids, kMaxTopLogprobs, -7);
    std::fill_n(row.top_logprobs, kMaxTopLogprobs, kNan);
    return row;
  }

  std::unique_ptr<TestDevice> device_;
};

// Logits by name: what orders, ties and ranges there may be.
std::vector<float> Logits(Random& random, int64_t vocab_size, const std::string& kind) {
  std::vector<float> logits = random.Normal(vocab_size, kind == "wide" ? 5.0f : 1.0f);
  for (float& x : logits) {
    const int dice = random.Int(0, 99);
    if (kind == "tied") x = std::round(2 * x) / 2;
    if (kind == "equal") x = dice < 50 ? 0.0f : -0.0f;
    if (kind == "masked" && dice < 70) x = dice < 35 ? -kInfinity : -1e9f;
    if (kind == "special" && dice < 60) {
      x = dice < 20 ? kNan : dice < 40 ? -kInfinity : dice < 42 ? -3e38f : x;
    }
  }
  if (kind == "outlier") logits[random.Int(0, static_cast<int>(vocab_size) - 1)] = 30;
  return logits;
}

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// Every combination of values that change how a token is drawn.
std::vector<SampleRow> DrawnRows() {
  std::vector<SampleRow> rows;
  for (const float temperature : {1.0f, 1e-30f, 0.5f, 4.0f}) {
    for (const int top_k : {0, 1, 40, 1500}) {
      for (const float top_p : {1.0f, 0.9f, 0.3f}) {
        for (const float min_p : {0.0f, 0.02f, 1.0f}) {
          rows.push_back({.temperature = temperature, .top_p = top_p, .min_p = min_p,
                          .top_k = top_k});
        }
      }
    }
  }
  return rows;
}

std::string Describe(const SampleRow& row) {
  ::testing::Message message;
  message << "temperature " << row.temperature << " top_k " << row.top_k << " top_p " << row.top_p
          << " min_p " << row.min_p << " uniform " << row.uniform;
  return message.GetString();
}

TEST_P(SampleTokensParity, GreedyTakesTheLargestAndOfEqualOnesTheFirst) {
  EXPECT_EQ(TokenOf({1, 3, 2}), 1);
  EXPECT_EQ(TokenOf({1, 3, 3}), 1);
  EXPECT_EQ(TokenOf({-0.0f, 0.0f}), 0) << "the two zeros are equal";
  EXPECT_EQ(TokenOf({-kInfinity, -5}), 1);
  Random random(1);
  for (const int64_t vocab_size : {1, 3, 31, 1025, 8192, 8193, 100003, 300001}) {
    Batch batch;
    std::vector<int32_t> want;
    for (int i = 0; i < 5; ++i) {
      std::vector<float> logits = random.Normal(vocab_size);
      const int at = random.Int(0, static_cast<int>(vocab_size) - 1);
      logits[at] = 50;
      logits[random.Int(at, static_cast<int>(vocab_size) - 1)] = 50;
      batch.Add(logits, {});
      want.push_back(at);
    }
    const std::vector<SampledRow> got = Run(batch);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(got[i].token_id, want[i]) << vocab_size << " " << i;
  }
}

TEST_P(SampleTokensParity, NanIsImpossibleAndInfinityTheBest) {
  for (const float temperature : {0.0f, 1.0f}) {
    for (const float top_p : {1.0f, 0.5f}) {
      for (const int top_k : {0, 2}) {
        const SampleRow row = {
            .uniform = 0.7, .temperature = temperature, .top_p = top_p, .top_k = top_k};
        SCOPED_TRACE(Describe(row));
        EXPECT_EQ(TokenOf({kNan, -3, -kNan, -kInfinity}, row), 1);
        EXPECT_EQ(TokenOf({kNan, 1, kInfinity, 3e38f}, row), 2);
        for (const int64_t vocab_size : {2, 3, 20000}) {
          std::vector<float> logits(vocab_size, kNan);
          logits[vocab_size - 1] = -kInfinity;
          const SampledRow none = RunOne(logits, row);
          EXPECT_EQ(none.token_id, -1);
          EXPECT_EQ(none.num_top, 0);
          logits[vocab_size / 2] = -2e38f;
          EXPECT_EQ(TokenOf(logits, row), vocab_size / 2);
        }
      }
    }
  }
}

TEST_P(SampleTokensParity, DrawsWhatTheReferenceDraws) {
  const std::vector<SampleRow> combinations = DrawnRows();
  const std::vector<double> uniforms = {0.0, 0.137, 0.52, 0.951, kLastUniform};
  struct Shape {
    int64_t vocab_size;
    size_t step;  // through the combinations
    size_t num_uniforms;
  };
  int num_near = 0;
  int num_drawn = 0;
  Random random(2);
  for (const Shape& shape : {Shape{1, 5, 2}, {2, 1, 5}, {5, 1, 5}, {64, 1, 5}, {1027, 1, 3},
                             {50000, 17, 2}, {151680, 31, 2}}) {
    for (const char* kind : {"normal", "wide", "tied", "equal", "masked", "special", "outlier"}) {
      if (shape.vocab_size > 10000 && random.Int(0, 1) == 0) continue;
      SCOPED_TRACE(::testing::Message() << shape.vocab_size << " " << kind);
      // Two rows' logits by turns, so that rows cannot be mixed up.
      const std::vector<float> logits[2] = {Logits(random, shape.vocab_size, kind),
                                            Logits(random, shape.vocab_size, kind)};
      Batch batch;
      size_t next = random.Int(0, static_cast<int>(shape.step) - 1);
      for (; next < combinations.size(); next += shape.step) {
        SampleRow row = combinations[next];
        for (size_t i = 0; i < shape.num_uniforms; ++i) {
          row.uniform = uniforms[(next + i) % uniforms.size()];
          batch.Add(logits[batch.rows.size() % 2], row);
        }
      }
      const std::vector<SampledRow> got = Run(batch);
      const SampleTokensReference references[2] = {SampleTokensReference(logits[0]),
                                                   SampleTokensReference(logits[1])};
      for (size_t i = 0; i < got.size(); ++i) {
        const SampleRow& row = batch.rows[i];
        const auto want = references[i % 2].Of(row);
        ++num_drawn;
        if (got[i].token_id == want.TokenAt(row.uniform)) continue;
        ++num_near;
        ASSERT_TRUE(want.IsNearly(got[i].token_id, row.uniform))
            << Describe(row) << ": " << got[i].token_id << ", not " << want.TokenAt(row.uniform);
      }
    }
  }
  // Mostly of the last uniform number, where what is left is less than any token's weight.
  EXPECT_LE(num_near, num_drawn / 50) << "sums may differ in the last digits only";
}

TEST_P(SampleTokensParity, ReferenceTellsTokensApart) {
  // What the comparisons above rest on: a wrong token is not taken for a close one.
  const SampleTokensReference reference(LogitsOf({0.5, 0.3, 0.2}));
  const auto drawn = reference.Of({.temperature = 1});
  EXPECT_EQ(drawn.TokenAt(0.49), 0);
  EXPECT_EQ(drawn.TokenAt(0.51), 1);
  EXPECT_EQ(drawn.TokenAt(0.81), 2);
  EXPECT_FALSE(drawn.IsNearly(1, 0.49));
  EXPECT_FALSE(drawn.IsNearly(0, 0.51));
  EXPECT_EQ(reference.Of({.temperature = 1, .top_p = 0.6f}).NumKept(), 2);
}

TEST_P(SampleTokensParity, FrequenciesFollowTheDistribution) {
  const std::vector<double> p = {0.1, 0.4, 0.3, 0.2};
  for (const float top_p : {1.0f, 0.99999f}) {  // in the order of ids, and best first
    const auto counts = Counts(LogitsOf(p), {.temperature = 1, .top_p = top_p}, 1000);
    for (int id = 0; id < 4; ++id) EXPECT_NEAR(counts.at(id), 1000 * p[id], 1.01) << id;
  }
  const auto logits = LogitsOf({0.8, 0.2});
  EXPECT_NEAR(Counts(logits, {.temperature = 0.5f}, 1000)[0], 640 / 0.68, 1.01);
  EXPECT_NEAR(Counts(logits, {.temperature = 2}, 1000)[0], 2000.0 / 3, 1.01);
  EXPECT_THAT(Choices(logits, {.temperature = 1e-30f}), ElementsAre(0));
}

TEST_P(SampleTokensParity, TopKKeepsTheBestWithTiesToTheLowerId) {
  const std::vector<float> logits = {0, 1, 1, 1, -2};
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_k = 1}), ElementsAre(1));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_k = 2}), ElementsAre(1, 2));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_k = 4}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_k = 1000}), ElementsAre(0, 1, 2, 3, 4));
}

TEST_P(SampleTokensParity, TopPKeepsTheShortestRunThatReachesIt) {
  const auto logits = LogitsOf({0.1, 0.4, 0.3, 0.2});
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.0001f}), ElementsAre(1));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.39f}), ElementsAre(1));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.45f}), ElementsAre(1, 2));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.75f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.95f}), ElementsAre(0, 1, 2, 3));
  // Of what top_k left: 4/7 and 3/7.
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.5f, .top_k = 2}), ElementsAre(1));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.6f, .top_k = 2}), ElementsAre(1, 2));
}

TEST_P(SampleTokensParity, TopPOverAFlatLargeVocabularyKeepsItsShareByLowerId) {
  const std::vector<float> logits(20000, 0.0f);
  Batch batch;
  for (const double uniform : {0.0, 0.5, kLastUniform}) {
    batch.Add(logits, {.uniform = uniform, .temperature = 1, .top_p = 0.25f});
  }
  const std::vector<SampledRow> got = Run(batch);
  EXPECT_EQ(got[0].token_id, 0);
  EXPECT_EQ(got[1].token_id, 2500);
  EXPECT_EQ(got[2].token_id, 4999);
}

TEST_P(SampleTokensParity, MinPIsRelativeToTheMostProbable) {
  const auto logits = LogitsOf({0.5, 0.3, 0.15, 0.05});
  EXPECT_THAT(Choices(logits, {.temperature = 1, .min_p = 0.05f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .min_p = 0.2f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .min_p = 0.5f}), ElementsAre(0, 1));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .min_p = 1}), ElementsAre(0));
  EXPECT_THAT(Choices(logits, {.temperature = 1, .top_p = 0.9f, .min_p = 0.5f}),
              ElementsAre(0, 1));
  EXPECT_THAT(Choices({2, 2, 1, 2}, {.temperature = 1, .min_p = 1}), ElementsAre(0, 1, 3));
}

TEST_P(SampleTokensParity, EditsAreBiasThenRepetitionThenPenalty) {
  EXPECT_EQ(TokenOf({5, 1, 0}, {}, {{.token_id = 2, .bias = 100}}), 2);
  EXPECT_EQ(TokenOf({5, 1, 0}, {}, {{.token_id = 0, .penalty = kInfinity}}), 1);
  EXPECT_EQ(TokenOf({5, 1, 0}, {.temperature = 1, .top_k = 1},
                    {{.token_id = 0, .penalty = kInfinity}}),
            1);
  EXPECT_EQ(TokenOf({3, 3}, {}, {{.token_id = 0, .penalty = kInfinity},
                                 {.token_id = 1, .penalty = kInfinity}}),
            -1);
  // 4 / 2 = 2, (-2) * 2 - 2 = -6, (1 + 2) / 1.5 = 2, 6 / 2 - 1.5 = 1.5; NaN stays impossible.
  const SampledRow got = RunOne({4, -2, 1, 6, kNan}, {.num_logprobs = 20},
                                {{.token_id = 3, .repetition = 2, .penalty = 1.5f},
                                 {.token_id = 0, .repetition = 2},
                                 {.token_id = 4, .bias = 100},
                                 {.token_id = 1, .repetition = 2, .penalty = 2},
                                 {.token_id = 2, .bias = 2, .repetition = 1.5f}});
  const SampleTokensReference want({2, -6, 2, 1.5});
  EXPECT_EQ(got.token_id, 0);
  ASSERT_EQ(got.num_top, 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(got.top_ids[i], want.Order()[i]);
    EXPECT_NEAR(got.top_logprobs[i], want.Logprob(want.Order()[i]), 1e-5);
  }
}

TEST_P(SampleTokensParity, EditsOfManyTokensAndRows) {
  Random random(3);
  for (const int64_t vocab_size : {7, 1030, 40000}) {
    Batch batch;
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<LogitEdit>> edits;
    for (const int64_t num_edits : {int64_t{0}, vocab_size, vocab_size / 3, int64_t{1}}) {
      logits.push_back(random.Normal(vocab_size));
      edits.emplace_back();
      const int first = random.Int(0, static_cast<int>(vocab_size) - 1);
      for (int64_t i = 0; i < num_edits; ++i) {
        edits.back().push_back(
            {.token_id = static_cast<int32_t>((first + 2 * i + (2 * i >= vocab_size &&
                                                                vocab_size % 2 == 0)) %
                                              vocab_size),
             .bias = random.Normal(1)[0],
             .repetition = random.Int(0, 1) == 0 ? 0.75f : 1.25f,
             .penalty = random.Int(0, 9) == 0 ? kInfinity : random.Normal(1)[0]});
      }
      batch.Add(logits.back(),
                {.uniform = 0.4, .temperature = 0.7f, .top_p = 0.9f, .num_logprobs = 20},
                edits.back());
    }
    const std::vector<SampledRow> got = Run(batch);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << vocab_size << ", " << edits[i].size() << " edits");
      const SampleTokensReference want(logits[i], edits[i]);
      EXPECT_TRUE(want.Of(batch.rows[i]).IsNearly(got[i].token_id, 0.4));
      ASSERT_EQ(got[i].num_top, std::min<size_t>(20, want.Order().size()));
      for (int j = 0; j < got[i].num_top; ++j) EXPECT_EQ(got[i].top_ids[j], want.Order()[j]) << j;
    }
  }
}

TEST_P(SampleTokensParity, LogprobsAreOfTheDistributionBeforeTemperature) {
  Random random(4);
  for (const int64_t vocab_size : {1, 5, 64, 1027, 8200, 151680}) {
    for (const char* kind : {"normal", "wide", "tied", "equal", "masked", "special"}) {
      if (vocab_size > 100000 && kind[0] == 'm') continue;
      SCOPED_TRACE(::testing::Message() << vocab_size << " " << kind);
      const std::vector<float> logits = Logits(random, vocab_size, kind);
      const SampleTokensReference want(logits);
      const auto given = static_cast<int32_t>(vocab_size / 2);
      Batch batch;
      batch.Add(logits, {.num_logprobs = 0});
      batch.Add(logits, {.num_logprobs = 1});
      batch.Add(logits, {.num_logprobs = 20});
      batch.Add(logits, {.uniform = 0.3, .temperature = 0.1f, .top_k = 30, .num_logprobs = 5});
      batch.Add(logits, {.uniform = 0.3, .temperature = 2, .num_logprobs = 7});
      batch.Add(logits, {.uniform = 0.3, .temperature = 2, .top_p = 0.8f, .num_logprobs = 20});
      batch.Add(logits, {.temperature = 1, .given_token = given, .num_logprobs = 20});
      batch.Add(logits, {.given_token = given});
      const std::vector<SampledRow> got = Run(batch);
      for (size_t i = 0; i < got.size(); ++i) {
        SCOPED_TRACE(i);
        const SampleRow& row = batch.rows[i];
        if (want.Order().empty()) {
          EXPECT_EQ(got[i].token_id, -1);
          continue;
        }
        EXPECT_TRUE(want.Of(row).IsNearly(got[i].token_id, row.uniform)) << got[i].token_id;
        if (row.given_token >= 0) {
          EXPECT_EQ(got[i].token_id, given);
        }
        const size_t num_top = std::max(0, row.num_logprobs);
        ASSERT_EQ(got[i].num_top, std::min(num_top, want.Order().size()));
        if (row.num_logprobs < 0) continue;
        const double logprob = want.Logprob(got[i].token_id);
        if (std::isinf(logprob)) {
          EXPECT_EQ(got[i].logprob, -kInfinity) << "an impossible token was given";
        } else {
          EXPECT_NEAR(got[i].logprob, logprob, 1e-5 * std::max(1.0, std::abs(logprob)));
        }
        for (int j = 0; j < got[i].num_top; ++j) {
          const int32_t id = want.Order()[j];
          EXPECT_EQ(got[i].top_ids[j], id) << j;
          EXPECT_NEAR(got[i].top_logprobs[j], want.Logprob(id),
                      1e-5 * std::max(1.0, std::abs(want.Logprob(id))));
        }
      }
    }
  }
}

TEST_P(SampleTokensParity, RowsDependOnNothingButThemselves) {
  Random random(5);
  for (const int64_t vocab_size : {33, 1027, 30001}) {
    Batch batch;
    std::vector<std::vector<float>> logits;
    std::vector<SampleRow> rows;
    for (const SampleRow& drawn : DrawnRows()) {
      if (rows.size() == 40) break;
      SampleRow row = drawn;
      row.uniform = 0.618 * static_cast<double>(rows.size()) -
                    std::floor(0.618 * static_cast<double>(rows.size()));
      row.num_logprobs = static_cast<int32_t>(rows.size() % 22) - 1;
      if (rows.size() % 5 == 0) row.temperature = 0;
      if (rows.size() % 7 == 0) row.given_token = 3;
      logits.push_back(Logits(random, vocab_size, rows.size() % 2 == 0 ? "normal" : "tied"));
      rows.push_back(row);
      batch.Add(logits.back(), row);
    }
    const std::vector<SampledRow> first = Run(batch);
    const std::vector<SampledRow> second = Run(batch);
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(std::memcmp(&first[i], &second[i], sizeof(SampledRow)), 0) << i;
      if (i % 3 != 0) continue;
      const SampledRow alone = RunOne(logits[i], rows[i]);
      EXPECT_EQ(std::memcmp(&first[i], &alone, sizeof(SampledRow)), 0) << vocab_size << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, SampleTokensParity, ::testing::ValuesIn(TestDevices()),
                         [](const auto& info) { return DeviceName(info.param); });

}  // namespace
}  // namespace hyserve::kernels::testing
