#include "tests/engine/model/demo_golden.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace hyserve::model {

DemoGolden::RowsComparison DemoGolden::CompareRows(ModelRunner& runner) const {
  RowsComparison result;
  result.rows = golden_.Ints(Name("rows"));
  const std::vector<float> logits = golden_.Floats(Name("logits"));
  const int64_t vocab = runner.model().config().vocab_size;
  const kv_cache::KvLayout& layout = runner.model().layout();
  ModelRunner::Sequence sequence = runner.NewSequence(static_cast<int64_t>(ids_.size()));
  for (size_t i = 0; i < result.rows.size(); ++i) {
    const int32_t row = result.rows[i];
    const StepOutput output = runner.Step(
        sequence, std::span(ids_).subspan(sequence.length, row + 1 - sequence.length),
        SequenceRows::Logits::kLast);
    result.logit_errors.push_back(
        RelativeError(output.logits, std::span(logits).subspan(i * vocab, vocab)));
    auto selected = output.selections[0].begin();
    for (const int slot : layout.oracle_slots) {
      const std::string layer = absl::StrCat(layout.full_layers[slot]);
      const std::vector<int32_t> wanted = golden_.Ints(Name("selection." + layer));
      const std::vector<float> margin = golden_.Floats(Name("selection_margin." + layer));
      for (int g = 0; g < layout.num_kv_heads; ++g, selected += layout.selected_blocks) {
        const int64_t group = static_cast<int64_t>(i) * layout.num_kv_heads + g;
        const auto begin = wanted.begin() + group * layout.selected_blocks;
        result.sets.push_back(
            {absl::StrCat("row ", row, ", layer ", layer, ", group ", g), margin[group],
             std::equal(begin, begin + layout.selected_blocks, selected)});
      }
    }
  }
  return result;
}

std::vector<DemoGolden::Token> DemoGolden::CompareGreedy(ModelRunner& runner) const {
  const std::vector<int32_t> greedy = golden_.Ints(Name("greedy_ids"));
  const std::vector<float> margin = golden_.Floats(Name("greedy_margin"));
  EXPECT_EQ(greedy.size(), 256u);
  ModelRunner::Sequence sequence =
      runner.NewSequence(static_cast<int64_t>(ids_.size() + greedy.size()));
  std::vector<Token> tokens;
  int32_t token = runner.GreedyStep(sequence, ids_);
  for (size_t i = 0; i < greedy.size(); ++i) {
    tokens.push_back({token, greedy[i], margin[i]});
    token = runner.GreedyStep(sequence, std::span(greedy).subspan(i, 1));
  }
  return tokens;
}

}  // namespace hyserve::model
