#include "engine/sampling/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

namespace hyserve::sampling {
namespace {

using testing::HasSubstr;

TEST(SamplingParamsTest, DefaultsAreValid) { EXPECT_TRUE(Validate({}, 100).ok()); }

TEST(SamplingParamsTest, EveryRuleIsCheckedAndNamesItsField) {
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  struct Case {
    const char* field;
    std::function<void(SamplingParams&)> spoil;
  };
  const std::vector<Case> cases = {
      {"temperature", [](auto& p) { p.temperature = -0.1f; }},
      {"temperature", [](auto& p) { p.temperature = 2.1f; }},
      {"temperature", [=](auto& p) { p.temperature = nan; }},
      {"temperature", [=](auto& p) { p.temperature = infinity; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = 1.1f; }},
      {"top_p", [=](auto& p) { p.top_p = nan; }},
      {"min_p", [](auto& p) { p.min_p = -0.1f; }},
      {"min_p", [=](auto& p) { p.min_p = nan; }},
      {"top_k", [](auto& p) { p.top_k = -1; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = 2.5f; }},
      {"presence_penalty", [=](auto& p) { p.presence_penalty = nan; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", [=](auto& p) { p.repetition_penalty = nan; }},
      {"logit_bias", [](auto& p) { p.logit_bias = {{100, 1.f}}; }},
      {"logit_bias", [](auto& p) { p.logit_bias = {{-1, 1.f}}; }},
      {"logit_bias", [](auto& p) { p.logit_bias = {{5, 101.f}}; }},
      {"logit_bias", [=](auto& p) { p.logit_bias = {{5, nan}}; }},
      {"logit_bias", [](auto& p) { p.logit_bias.assign(kMaxLogitBias + 1, {1, 0.f}); }},
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }},
      {"min_tokens", [](auto& p) { p.min_tokens = -1; }},
      {"min_tokens", [](auto& p) { p.min_tokens = p.max_tokens + 1; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {100}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids.assign(kMaxStopTokenIds + 1, 1); }},
      {"num_logprobs", [](auto& p) { p.num_logprobs = kMaxLogprobs + 1; }},
      {"num_logprobs", [](auto& p) { p.num_logprobs = -2; }},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.spoil(params);
    const absl::Status status = Validate(params, 100);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
  }
}

TEST(SamplingParamsTest, AllViolationsAreNamedAtOnce) {
  SamplingParams params;
  params.temperature = 9;
  params.top_p = 9;
  const std::string message(Validate(params, 100).message());
  EXPECT_THAT(message, HasSubstr("temperature"));
  EXPECT_THAT(message, HasSubstr("top_p"));
}

}  // namespace
}  // namespace hyserve::sampling
