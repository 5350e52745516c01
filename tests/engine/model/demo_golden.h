// The demo model against its golden file: runs a prompt of it on a model and sets what the model
// gives beside what the float64 reference gave. The tests judge the differences.
#ifndef HYSERVE_TESTS_ENGINE_MODEL_DEMO_GOLDEN_H_
#define HYSERVE_TESTS_ENGINE_MODEL_DEMO_GOLDEN_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/golden_file.h"
#include "tests/engine/model/model_runner.h"

namespace hyserve::model {

inline const std::string kDemoDirectory = HYSERVE_SOURCE_DIR "/models/demo";

class DemoGolden {
 public:
  // Blocks that one KV head of an oracle selected for a row.
  struct SelectedSet {
    std::string place;  // for messages: row, layer and group
    float margin = 0;   // of the reference: score of the last block taken above the first left out
    bool equal = false;
  };
  struct RowsComparison {
    std::vector<int32_t> rows;
    std::vector<double> logit_errors;  // of each row, relative in the 2-norm
    std::vector<SelectedSet> sets;     // of each row, oracle and group
  };
  struct Token {
    int32_t got = 0;
    int32_t wanted = 0;
    float margin = 0;  // of the reference: largest logit above the next
  };

  // `prompt`: "short" or "long".
  explicit DemoGolden(std::string prompt) : prompt_(std::move(prompt)) {}

  const std::vector<int32_t>& ids() const { return ids_; }
  // The prompt in steps that end at the chosen rows, so that their selections are seen.
  RowsComparison CompareRows(ModelRunner& runner) const;
  // The prompt in one step, then the reference's 256 greedy tokens one by one. The reference is
  // followed whatever the model chooses, so that every later token is still compared.
  std::vector<Token> CompareGreedy(ModelRunner& runner) const;

 private:
  std::string Name(const std::string& tensor) const { return prompt_ + "." + tensor; }

  const std::string prompt_;
  const GoldenFile golden_{kGoldenDirectory + "/demo/golden.safetensors"};
  const std::vector<int32_t> ids_ = golden_.Ints(Name("input_ids"));
};

}  // namespace hyserve::model

#endif  // HYSERVE_TESTS_ENGINE_MODEL_DEMO_GOLDEN_H_
