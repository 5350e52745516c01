// A second, plain implementation of SampleTokens for the tests: everything sorted, every sum in long
// double. Uses nothing of the op but its parameters.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_SAMPLE_TOKENS_REFERENCE_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_SAMPLE_TOKENS_REFERENCE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kernels/sample_tokens.h"

namespace hyserve::kernels::testing {

// A row of logits after the edits.
class SampleTokensReference {
 public:
  // edits: those of this row.
  explicit SampleTokensReference(std::vector<float> logits,
                                 const std::vector<LogitEdit>& edits = {});

  // Token ids, best first; those without a probability are left out.
  const std::vector<int32_t>& Order() const { return order_; }
  double Logprob(int32_t token_id) const;

  // Answers for many uniform numbers with the same other values of a row.
  class Distribution {
   public:
    // The chosen token, -1 where none is possible.
    int32_t TokenAt(double uniform) const;
    // True when a change of uniform, top_p and min_p by up to 1e-9 chooses the token: sums in
    // another order, or of rounded weights, may.
    bool IsNearly(int32_t token_id, double uniform) const;
    // Tokens that can be chosen.
    int64_t NumKept() const { return num_kept_; }

   private:
    friend class SampleTokensReference;
    int64_t PlaceOf(double uniform, int64_t num_kept) const;

    bool drawn_ = false;  // else best_ is the answer
    int32_t best_ = -1;
    std::vector<int32_t> ids_;          // in the order of the running sum
    std::vector<long double> running_;  // sums of weights
    int64_t num_kept_ = 0;
    int64_t fewest_kept_ = 0;  // with top_p and min_p changed
    int64_t most_kept_ = 0;
  };
  // row: uniform, edits and log-probabilities are not looked at.
  Distribution Of(const SampleRow& row) const;

 private:
  std::vector<float> logits_;
  std::vector<int32_t> order_;
  long double log_sum_exp_ = 0;
};

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_SAMPLE_TOKENS_REFERENCE_H_
