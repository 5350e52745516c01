#include "services/router/request_validator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

using common::FieldViolations;
using ::testing::HasSubstr;

class ValidatorTest : public ::testing::Test {
 protected:
  ValidatorTest() {
    model_.name = "m";
    model_.vocab_size = 100;
    model_.max_context_tokens = 64;
    request_.set_text("hello");
  }
  // Field names of all violations, joined.
  std::string Fields() {
    const auto result = ValidateRequest(request_, model_, limits_);
    if (result.ok()) return "";
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    std::string fields;
    for (const auto& violation : FieldViolations(result.status())) {
      fields += (fields.empty() ? "" : " ") + violation.field;
    }
    return fields;
  }
  ModelInfo model_;
  common::LimitSettings limits_;
  v1::GenerateRequest request_;
};

TEST_F(ValidatorTest, DefaultsAreThoseOfTheApi) {
  const auto result = ValidateRequest(request_, model_, limits_);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->sampling.temperature, 1.0f);
  EXPECT_EQ(result->sampling.top_p, 1.0f);
  EXPECT_EQ(result->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(result->sampling.num_logprobs, -1);
  EXPECT_EQ(result->prompt_logprobs, -1);
  EXPECT_TRUE(result->use_prefix_cache);
  EXPECT_FALSE(result->has_seed);
}

TEST_F(ValidatorTest, ReportsEveryViolationAtOnce) {
  request_.set_request_id("no spaces");
  request_.mutable_sampling()->set_temperature(NAN);
  request_.mutable_sampling()->set_top_p(0);
  request_.mutable_stopping()->set_max_tokens(0);
  request_.mutable_output()->set_logprobs(21);
  EXPECT_EQ(Fields(),
            "request_id sampling.temperature sampling.top_p stopping.max_tokens output.logprobs");
  EXPECT_THAT(ValidateRequest(request_, model_, limits_).status().ToString(),
              HasSubstr("sampling.temperature: must be finite and in [0, 2]; got nan"));
}

TEST_F(ValidatorTest, RefusesEveryBadNumber) {
  const float inf = std::numeric_limits<float>::infinity();
  const auto field_of = [&](void (v1::Sampling::*set)(float), float value) {
    request_.mutable_sampling()->Clear();
    (request_.mutable_sampling()->*set)(value);
    return Fields();
  };
  for (const float bad : {NAN, inf, -inf, 100.0f, -100.0f}) {
    EXPECT_EQ(field_of(&v1::Sampling::set_temperature, bad), "sampling.temperature");
    EXPECT_EQ(field_of(&v1::Sampling::set_top_p, bad), "sampling.top_p");
    EXPECT_EQ(field_of(&v1::Sampling::set_min_p, bad), "sampling.min_p");
    EXPECT_EQ(field_of(&v1::Sampling::set_frequency_penalty, bad), "sampling.frequency_penalty");
    EXPECT_EQ(field_of(&v1::Sampling::set_presence_penalty, bad), "sampling.presence_penalty");
    EXPECT_EQ(field_of(&v1::Sampling::set_repetition_penalty, bad), "sampling.repetition_penalty");
  }
  EXPECT_EQ(field_of(&v1::Sampling::set_repetition_penalty, 0), "sampling.repetition_penalty");
  EXPECT_EQ(field_of(&v1::Sampling::set_temperature, -0.0f), "");
  EXPECT_EQ(field_of(&v1::Sampling::set_temperature, std::numeric_limits<float>::denorm_min()), "");
}

TEST_F(ValidatorTest, PromptMustBeThereOnceAndValid) {
  request_.clear_prompt();
  EXPECT_EQ(Fields(), "prompt");
  request_.set_text("");
  EXPECT_EQ(Fields(), "text");
  request_.set_text(std::string("nul \0 is text", 13));
  EXPECT_EQ(Fields(), "");
  request_.set_text("ab\xC3(");
  EXPECT_EQ(Fields(), "text");
  EXPECT_THAT(ValidateRequest(request_, model_, limits_).status().ToString(),
              HasSubstr("text: not valid UTF-8 at byte 2"));
  request_.mutable_token_ids();
  EXPECT_EQ(Fields(), "token_ids.ids");
  for (const int32_t bad : {-1, 100, INT32_MAX}) {
    request_.mutable_token_ids()->clear_ids();
    request_.mutable_token_ids()->add_ids(5);
    request_.mutable_token_ids()->add_ids(bad);
    EXPECT_EQ(Fields(), "token_ids.ids[1]");
  }
  request_.mutable_chat();
  EXPECT_EQ(Fields(), "chat.messages");
  request_.mutable_chat()->add_messages()->set_content("\xFF");
  EXPECT_EQ(Fields(), "chat.messages[0].role chat.messages[0].content");
}

TEST_F(ValidatorTest, NeverEchoesThePrompt) {
  request_.set_text("secret words \xFF");
  EXPECT_THAT(ValidateRequest(request_, model_, limits_).status().ToString(),
              testing::Not(HasSubstr("secret")));
}

TEST_F(ValidatorTest, IdsAreCheckedAgainstTheModel) {
  (*request_.mutable_sampling()->mutable_logit_bias())[100] = 1;
  EXPECT_EQ(Fields(), "sampling.logit_bias");
  request_.mutable_sampling()->clear_logit_bias();
  (*request_.mutable_sampling()->mutable_logit_bias())[7] = NAN;
  EXPECT_EQ(Fields(), "sampling.logit_bias[7]");
  request_.mutable_sampling()->clear_logit_bias();
  request_.mutable_stopping()->add_stop_token_ids(100);
  EXPECT_EQ(Fields(), "stopping.stop_token_ids[0]");
}

TEST_F(ValidatorTest, ListsAndStringsAreBounded) {
  for (int i = 0; i <= limits_.logit_bias; ++i) {
    (*request_.mutable_sampling()->mutable_logit_bias())[i] = 0;
  }
  for (int i = 0; i <= limits_.stop_token_ids; ++i) {
    request_.mutable_stopping()->add_stop_token_ids(i);
  }
  for (int i = 0; i <= limits_.stop_strings; ++i) request_.mutable_stopping()->add_stop("x");
  request_.set_cache_scope(std::string(65, 'x'));
  request_.set_request_id(std::string(129, 'x'));
  EXPECT_EQ(Fields(),
            "request_id sampling.logit_bias stopping.stop stopping.stop_token_ids cache_scope");
  request_.Clear();
  request_.set_text("x");
  request_.mutable_stopping()->add_stop("");
  request_.mutable_stopping()->add_stop(std::string(257, 'x'));
  request_.mutable_stopping()->add_stop("\xFF");
  EXPECT_EQ(Fields(), "stopping.stop[0] stopping.stop[1] stopping.stop[2]");
}

TEST_F(ValidatorTest, MinTokensMayNotExceedMaxTokens) {
  request_.mutable_stopping()->set_max_tokens(4);
  request_.mutable_stopping()->set_min_tokens(5);
  EXPECT_EQ(Fields(), "stopping.min_tokens");
}

TEST_F(ValidatorTest, AnotherModelIsNotFound) {
  request_.set_model("other");
  EXPECT_EQ(ValidateRequest(request_, model_, limits_).status().code(),
            absl::StatusCode::kNotFound);
  request_.set_model("m");
  EXPECT_TRUE(ValidateRequest(request_, model_, limits_).ok());
}

TEST_F(ValidatorTest, LengthIsResolvedAgainstTheContext) {
  ValidatedRequest request;
  EXPECT_TRUE(ResolveLength(60, model_, limits_, &request).ok());
  EXPECT_EQ(request.sampling.max_tokens, 4);  // cut to the context
  request.has_max_tokens = true;
  request.sampling.max_tokens = 5;
  const absl::Status status = ResolveLength(60, model_, limits_, &request);
  EXPECT_EQ(status.message(), "prompt: 60 tokens + max_tokens 5 exceed context 64");
  request.sampling.max_tokens = 4;
  EXPECT_TRUE(ResolveLength(60, model_, limits_, &request).ok());
  ValidatedRequest full;
  EXPECT_FALSE(ResolveLength(64, model_, limits_, &full).ok());
  EXPECT_FALSE(ResolveLength(0, model_, limits_, &full).ok());
}

}  // namespace
}  // namespace hyserve::router
