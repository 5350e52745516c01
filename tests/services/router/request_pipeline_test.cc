// The life of a request as scripts: events in, the actions they must cause out.
#include "services/router/request_pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "services/common/worker_errors.h"
#include "tests/support/byte_tokenizer.h"

namespace hyserve::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

// Writes every action down as one word.
class Recorder : public PipelineActions {
 public:
  bool Retry(uint32_t attempt, FailedPart failed) override {
    if (!retries_allowed) return false;
    Note(StrCat("retry ", attempt, " ", FailedPartName(failed)));
    return true;
  }
  void CancelPrefill() override { Note("cancel-prefill"); }
  void CancelDecode() override { Note("cancel-decode"); }
  void WriteProgress(int32_t computed_tokens) override {
    Note(StrCat("progress ", computed_tokens));
  }
  void WritePromptLogprobs(
      int32_t first_index,
      const google::protobuf::RepeatedPtrField<v1::SampledToken>& rows) override {
    Note(StrCat("prompt-logprobs ", first_index, "+", rows.size()));
  }
  void WriteTokens(const TokenBatch& batch) override {
    std::string word = StrCat("tokens ", batch.first_index, ":");
    for (const v1::SampledToken* token : batch.tokens) {
      word.push_back(static_cast<char>(token->token_id()));
    }
    Note(word);
    text += batch.text;
  }
  void OnPromptComputed() override { Note("prompt-computed"); }
  void OnHandoff(bool ok) override { Note(ok ? "handoff-ok" : "handoff-bad"); }
  void OnStaleEvent() override { Note("stale"); }
  void Finish(const FinishInfo& info) override {
    Note(info.reason == v1::FINISH_REASON_LENGTH ? "finish-length" : "finish-stop");
    finish = info;
    text += info.text;
  }
  void Fail(const absl::Status& status, std::string_view reason) override {
    Note(StrCat("fail ", reason));
    failure = status;
  }

  std::vector<std::string> Take() { return std::exchange(actions, {}); }

  std::vector<std::string> actions;
  std::string text;
  FinishInfo finish;
  absl::Status failure;
  bool retries_allowed = true;

 private:
  void Note(std::string word) { actions.push_back(std::move(word)); }
};

class PipelineTest : public ::testing::Test {
 protected:
  void Make(PipelineOptions options, std::vector<std::string> stop = {}) {
    model_ = test::MakeByteTextModel();
    auto text = TextStream::Create(model_.get(), stop, false, false);
    ASSERT_TRUE(text.ok());
    pipeline_.emplace(std::move(options), *std::move(text), &recorder_);
  }
  void Dispatch(uint32_t attempt = 1) { pipeline_->OnAssigned(attempt, false, kStart); }
  void FirstToken(char token, bool finished = false, bool by_length = false, uint32_t attempt = 1) {
    v1::PrefillEvent event;
    event.mutable_first_token()->mutable_token()->set_token_id(static_cast<uint8_t>(token));
    event.mutable_first_token()->set_finished(finished);
    event.mutable_first_token()->set_finished_by_length(by_length);
    pipeline_->OnPrefillEvent(attempt, event, kStart + absl::Milliseconds(20));
  }
  void Tokens(int32_t first_index, std::string_view tokens, uint32_t attempt = 1) {
    v1::DecodeEvent event;
    event.mutable_tokens()->set_first_index(first_index);
    for (const char token : tokens) {
      event.mutable_tokens()->add_tokens()->set_token_id(static_cast<uint8_t>(token));
    }
    pipeline_->OnDecodeEvent(attempt, event, kStart + absl::Milliseconds(30));
  }
  void Started(uint32_t attempt = 1) {
    v1::DecodeEvent event;
    event.mutable_started()->set_shipped_bytes(77);
    pipeline_->OnDecodeEvent(attempt, event, kStart);
  }
  void DecodeFinished(int32_t generated, bool by_length = false, uint32_t attempt = 1) {
    v1::DecodeEvent event;
    event.mutable_finished()->set_generated_tokens(generated);
    event.mutable_finished()->set_by_length(by_length);
    pipeline_->OnDecodeEvent(attempt, event, kStart + absl::Milliseconds(40));
  }
  void PrefillEnd(absl::Status status, uint32_t attempt = 1) {
    pipeline_->OnPrefillEnd(attempt, status, kStart);
  }
  void DecodeEnd(absl::Status status, uint32_t attempt = 1) {
    pipeline_->OnDecodeEnd(attempt, status, kStart);
  }

  std::unique_ptr<TextModel> model_;
  Recorder recorder_;
  std::optional<RequestPipeline> pipeline_;
};

TEST_F(PipelineTest, RunsToTheEnd) {
  Make({.max_tokens = 4});
  Dispatch();
  Started();
  FirstToken('a');
  Tokens(1, "b");
  Tokens(2, "cd");
  DecodeFinished(4, /*by_length=*/true);
  EXPECT_THAT(recorder_.Take(), ElementsAre("handoff-ok", "prompt-computed", "tokens 0:a",
                                            "tokens 1:b", "tokens 2:cd", "finish-length"));
  EXPECT_EQ(recorder_.text, "abcd");
  EXPECT_EQ(pipeline_->record().shipped_bytes, 77u);
  PrefillEnd(absl::OkStatus());
  DecodeEnd(absl::OkStatus());
  EXPECT_THAT(recorder_.Take(), ElementsAre());
}

TEST_F(PipelineTest, HoldsDecodeTokensThatOvertakeTheFirst) {
  Make({.max_tokens = 3});
  Dispatch();
  Tokens(1, "b");
  Tokens(2, "c");
  Tokens(1, "b");  // again
  DecodeFinished(3, true);
  DecodeEnd(absl::OkStatus());
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale"));
  FirstToken('a');
  EXPECT_THAT(recorder_.Take(),
              ElementsAre("prompt-computed", "tokens 0:a", "tokens 1:bc", "finish-length"));
}

TEST_F(PipelineTest, NeverWritesAnIndexTwice) {
  Make({.max_tokens = 8});
  Dispatch();
  FirstToken('a');
  Tokens(1, "bc");
  recorder_.Take();
  Tokens(1, "bcd");
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale", "tokens 3:d"));
  Tokens(2, "cd");
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale"));
  FirstToken('a');
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale"));
}

TEST_F(PipelineTest, AGapIsAnError) {
  Make({.max_tokens = 8});
  Dispatch();
  FirstToken('a');
  recorder_.Take();
  Tokens(2, "c");
  EXPECT_THAT(recorder_.Take(),
              ElementsAre("cancel-prefill", "cancel-decode", "fail worker_error"));
  EXPECT_EQ(recorder_.failure.code(), absl::StatusCode::kInternal);
}

TEST_F(PipelineTest, AMiscountIsAnError) {
  Make({.max_tokens = 8});
  Dispatch();
  FirstToken('a');
  Tokens(1, "b");
  DecodeFinished(3);
  EXPECT_EQ(recorder_.failure.code(), absl::StatusCode::kInternal);
}

TEST_F(PipelineTest, MoreThanMaxTokensIsAnErrorAndIsNotWritten) {
  Make({.max_tokens = 2});
  Dispatch();
  FirstToken('a');
  Tokens(1, "bc");
  EXPECT_EQ(recorder_.text, "ab");
  EXPECT_EQ(recorder_.failure.code(), absl::StatusCode::kInternal);
}

TEST_F(PipelineTest, LostPrefillBeforeTheFirstTokenIsRetriedElsewhere) {
  Make({.max_tokens = 2});
  Dispatch();
  PrefillEnd(absl::UnavailableError("gone"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("cancel-decode", "retry 2 prefill"));
  // What the first attempt still sends changes nothing.
  FirstToken('x', false, false, 1);
  Tokens(1, "y", 1);
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale", "stale"));
  Dispatch(2);
  FirstToken('x', false, false, 1);
  FirstToken('a', false, false, 2);
  Tokens(1, "b", 2);
  DecodeFinished(2, true, 2);
  EXPECT_THAT(recorder_.Take(), ElementsAre("stale", "prompt-computed", "tokens 0:a", "tokens 1:b",
                                            "finish-length"));
  EXPECT_EQ(pipeline_->record().attempts, 2u);
}

TEST_F(PipelineTest, LostDecodeBeforeTheFirstTokenIsRetriedElsewhere) {
  Make({.max_tokens = 2});
  Dispatch();
  pipeline_->OnDecodeLost(1, kStart);
  EXPECT_THAT(recorder_.Take(), ElementsAre("cancel-decode", "cancel-prefill", "retry 2 decode"));
}

TEST_F(PipelineTest, AFailedHandoffBlamesThePair) {
  Make({.max_tokens = 2});
  Dispatch();
  DecodeEnd(common::HandoffFailedError("no progress"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("handoff-bad", "cancel-prefill", "retry 2 handoff"));
}

TEST_F(PipelineTest, RetriesAreLimited) {
  Make({.max_tokens = 2, .max_retries = 2});
  for (uint32_t attempt = 1; attempt <= 3; ++attempt) {
    Dispatch(attempt);
    PrefillEnd(absl::UnavailableError("gone"), attempt);
  }
  EXPECT_THAT(recorder_.Take(),
              ElementsAre("cancel-decode", "retry 2 prefill", "cancel-decode", "retry 3 prefill",
                          "cancel-decode", "fail worker_lost"));
  EXPECT_EQ(recorder_.failure.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(recorder_.failure.ToString(), HasSubstr("3 attempts"));
}

TEST_F(PipelineTest, ASpentRetryBudgetEndsTheRequest) {
  Make({.max_tokens = 2});
  recorder_.retries_allowed = false;
  Dispatch();
  PrefillEnd(absl::UnavailableError("gone"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("cancel-decode", "fail worker_lost"));
}

TEST_F(PipelineTest, LostAfterTheFirstTokenIsAborted) {
  Make({.max_tokens = 9});
  Dispatch();
  FirstToken('a');
  Tokens(1, "bc");
  recorder_.Take();
  DecodeEnd(absl::UnavailableError("gone"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("cancel-prefill", "fail worker_lost"));
  EXPECT_EQ(recorder_.failure.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(recorder_.failure.ToString(), HasSubstr("3 tokens"));
}

TEST_F(PipelineTest, PrefillLostAfterTheHandoffChangesNothing) {
  Make({.max_tokens = 3});
  Dispatch();
  FirstToken('a');
  Started();
  PrefillEnd(absl::UnavailableError("gone"));
  Tokens(1, "bc");
  DecodeFinished(3, true);
  EXPECT_EQ(recorder_.text, "abc");
  EXPECT_EQ(recorder_.actions.back(), "finish-length");
}

TEST_F(PipelineTest, DecodeLostAfterItsLastTokenStillFinishes) {
  Make({.max_tokens = 3});
  Dispatch();
  FirstToken('a');
  Tokens(1, "bc");
  recorder_.Take();
  DecodeEnd(absl::UnavailableError("gone"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("finish-length"));

  Make({.max_tokens = 9, .ending_token_ids = {test::kEndTokenId, test::kUserTokenId}});
  Dispatch();
  FirstToken('a');
  v1::DecodeEvent event;
  event.mutable_tokens()->set_first_index(1);
  event.mutable_tokens()->add_tokens()->set_token_id(test::kEndTokenId);
  pipeline_->OnDecodeEvent(1, event, kStart);
  recorder_.Take();
  DecodeEnd(absl::UnavailableError("gone"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("finish-stop"));
  EXPECT_EQ(recorder_.finish.stop_token_id, test::kEndTokenId);
}

TEST_F(PipelineTest, AStopStringEndsBothCallsAndDropsTheRest) {
  Make({.max_tokens = 20}, {"cd"});
  Dispatch();
  FirstToken('a');
  Tokens(1, "bc");
  EXPECT_EQ(recorder_.text, "ab");  // "c" could be the beginning of the stop string
  recorder_.Take();
  Tokens(3, "def");
  EXPECT_THAT(recorder_.Take(), ElementsAre("tokens 3:d", "cancel-prefill", "cancel-decode",
                                            "finish-stop"));
  EXPECT_EQ(recorder_.text, "ab");
  EXPECT_EQ(recorder_.finish.stop_index, 0);
  Tokens(6, "ghi");
  EXPECT_THAT(recorder_.Take(), ElementsAre());
}

TEST_F(PipelineTest, AFirstTokenThatEndsTheSequenceCancelsDecode) {
  Make({.max_tokens = 1});
  Dispatch();
  FirstToken('a', /*finished=*/true, /*by_length=*/true);
  EXPECT_THAT(recorder_.Take(),
              ElementsAre("prompt-computed", "tokens 0:a", "cancel-decode", "finish-length"));
  DecodeEnd(absl::CancelledError(""));
  EXPECT_THAT(recorder_.Take(), ElementsAre());
}

TEST_F(PipelineTest, CancelDeadlineAndSlowClientFreeEverything) {
  const auto end = [this](void (RequestPipeline::*event)()) {
    Make({.max_tokens = 9});
    Dispatch();
    FirstToken('a');
    recorder_.Take();
    ((*pipeline_).*event)();
    ((*pipeline_).*event)();  // twice is once
    return recorder_.Take();
  };
  EXPECT_THAT(end(&RequestPipeline::OnClientCancelled),
              ElementsAre("cancel-prefill", "cancel-decode", "fail cancelled"));
  EXPECT_THAT(end(&RequestPipeline::OnDeadline),
              ElementsAre("cancel-prefill", "cancel-decode", "fail deadline"));
  EXPECT_THAT(end(&RequestPipeline::OnSlowConsumer),
              ElementsAre("cancel-prefill", "cancel-decode", "fail slow_consumer"));
  EXPECT_THAT(end(&RequestPipeline::OnShutdown),
              ElementsAre("cancel-prefill", "cancel-decode", "fail shutdown"));
}

TEST_F(PipelineTest, ACancelInTheQueueEndsTheRequest) {
  Make({.max_tokens = 9});
  pipeline_->OnClientCancelled();
  EXPECT_THAT(recorder_.Take(), ElementsAre("fail cancelled"));
  Dispatch();
  FirstToken('a');
  EXPECT_THAT(recorder_.Take(), ElementsAre());
}

TEST_F(PipelineTest, ErrorsOfTheRequestAreNotRetried) {
  for (const absl::Status& status :
       {absl::InvalidArgumentError("x"), absl::InternalError("x"),
        absl::FailedPreconditionError("layout"), absl::DeadlineExceededError("x")}) {
    Make({.max_tokens = 9});
    Dispatch();
    DecodeEnd(status);
    EXPECT_EQ(recorder_.failure.code(), status.code());
    EXPECT_TRUE(pipeline_->ended());
  }
  Make({.max_tokens = 9});
  Dispatch();
  recorder_.Take();
  DecodeEnd(common::StaleIncarnationError("restarted"));
  EXPECT_THAT(recorder_.Take(), ElementsAre("cancel-prefill", "retry 2 decode"));
}

TEST_F(PipelineTest, MonolithicWorkersSendTheFirstTokenThemselves) {
  Make({.max_tokens = 2, .report_progress = true});
  pipeline_->OnAssigned(1, /*monolithic=*/true, kStart);
  v1::DecodeEvent progress;
  progress.mutable_progress()->set_computed_tokens(5);
  pipeline_->OnDecodeEvent(1, progress, kStart);
  Tokens(0, "a");
  Tokens(1, "b");
  DecodeFinished(2, true);
  EXPECT_THAT(recorder_.Take(), ElementsAre("progress 5", "prompt-computed", "tokens 0:a",
                                            "tokens 1:b", "finish-length"));
}

TEST_F(PipelineTest, ProgressAndPromptLogprobsAreNotRepeatedByARetry) {
  Make({.max_tokens = 2, .report_progress = true});
  const auto prefill = [this](uint32_t attempt) {
    v1::PrefillEvent event;
    event.mutable_progress()->set_computed_tokens(64);
    pipeline_->OnPrefillEvent(attempt, event, kStart);
    event.mutable_prompt_logprobs()->set_first_index(1);
    event.mutable_prompt_logprobs()->add_logprobs();
    pipeline_->OnPrefillEvent(attempt, event, kStart);
  };
  Dispatch();
  prefill(1);
  EXPECT_THAT(recorder_.Take(), ElementsAre("progress 64", "prompt-logprobs 1+1"));
  PrefillEnd(absl::UnavailableError("gone"));
  recorder_.Take();
  Dispatch(2);
  prefill(2);
  EXPECT_THAT(recorder_.Take(), ElementsAre());
}

TEST_F(PipelineTest, TextIsTheSameHoweverTokensAreGrouped) {
  const std::string bytes = "h\xC3\xA9llo \xF0\x9F\x98\x80 w\xC3\xB6rld";
  for (size_t group = 1; group <= bytes.size(); ++group) {
    Recorder fresh;
    std::swap(recorder_, fresh);
    Make({.max_tokens = 100});
    Dispatch();
    FirstToken(bytes[0]);
    for (size_t i = 1; i < bytes.size(); i += group) {
      Tokens(static_cast<int32_t>(i), std::string_view(bytes).substr(i, group));
    }
    DecodeFinished(static_cast<int32_t>(bytes.size()));
    EXPECT_EQ(recorder_.text, bytes) << group;
  }
}

}  // namespace
}  // namespace hyserve::router
