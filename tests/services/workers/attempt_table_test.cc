#include "services/worker/attempt_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hyserve::worker {
namespace {

class FakeAttempt final : public Attempt {
 public:
  void OnSuperseded() override { ++superseded; }
  int superseded = 0;
};

class AttemptTableTest : public testing::Test {
 protected:
  AttemptTable table_;
  std::shared_ptr<FakeAttempt> first_ = std::make_shared<FakeAttempt>();
  std::shared_ptr<FakeAttempt> second_ = std::make_shared<FakeAttempt>();
};

TEST_F(AttemptTableTest, ANewerAttemptSupersedes) {
  EXPECT_TRUE(table_.Enter("a", 1, first_).ok());
  EXPECT_TRUE(table_.Enter("a", 2, second_).ok());
  EXPECT_EQ(first_->superseded, 1);
  EXPECT_EQ(second_->superseded, 0);
  EXPECT_EQ(table_.size(), 1);
}

TEST_F(AttemptTableTest, AnOlderOrEqualAttemptIsRefusedWhileOneComputes) {
  EXPECT_TRUE(table_.Enter("a", 2, first_).ok());
  for (const uint32_t attempt : {1, 2}) {
    const absl::Status status = table_.Enter("a", attempt, second_);
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(status.message().substr(0, 15), "stale_attempt: ");
  }
  EXPECT_EQ(first_->superseded, 0);
}

TEST_F(AttemptTableTest, RequestsAreIndependent) {
  EXPECT_TRUE(table_.Enter("a", 2, first_).ok());
  EXPECT_TRUE(table_.Enter("b", 1, second_).ok());
  EXPECT_EQ(table_.size(), 2);
}

TEST_F(AttemptTableTest, ARetiredAttemptGivesWayToAnyOther) {
  EXPECT_TRUE(table_.Enter("a", 2, first_).ok());
  table_.Retire("a", first_.get());
  EXPECT_TRUE(table_.Enter("a", 1, second_).ok());
  EXPECT_EQ(first_->superseded, 1);
}

TEST_F(AttemptTableTest, LeavingFreesTheEntryButOnlyOnesOwn) {
  EXPECT_TRUE(table_.Enter("a", 1, first_).ok());
  EXPECT_TRUE(table_.Enter("a", 2, second_).ok());
  table_.Leave("a", first_.get());
  EXPECT_EQ(table_.size(), 1);
  table_.Retire("a", first_.get());
  EXPECT_FALSE(table_.Enter("a", 2, first_).ok());
  table_.Leave("a", second_.get());
  EXPECT_EQ(table_.size(), 0);
  EXPECT_EQ(second_.use_count(), 1);
}

}  // namespace
}  // namespace hyserve::worker
