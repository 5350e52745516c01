// What SampleTokens (ops.h) takes and gives for a row of logits. Plain data; arrays of these lie on
// the device.
#ifndef HYSERVE_ENGINE_KERNELS_SAMPLE_TOKENS_H_
#define HYSERVE_ENGINE_KERNELS_SAMPLE_TOKENS_H_

#include <cstdint>

namespace hyserve::kernels {

inline constexpr int kMaxTopLogprobs = 20;

// A change of one logit x: x += bias; then x /= repetition where x > 0 and x *= repetition where
// not; then x -= penalty. An infinite penalty makes the token impossible.
struct LogitEdit {
  int32_t token_id = 0;  // in [0, vocab_size)
  float bias = 0;
  float repetition = 1;  // > 0
  float penalty = 0;
};

// How the token of a row is chosen. By default: the one with the largest logit.
struct SampleRow {
  double uniform = 0;     // the random number, in [0, 1)
  float temperature = 0;  // 0: the best token; else > 0
  float top_p = 1;        // (0, 1]
  float min_p = 0;        // [0, 1]
  int32_t top_k = 0;      // 0: off
  // >= 0: nothing is chosen, this token is scored. REQUIRES: < vocab_size.
  int32_t given_token = -1;
  int32_t num_logprobs = -1;  // -1: none; 0: of the token; n <= kMaxTopLogprobs: the n best besides
  // The row's edits, [first_edit, first_edit + num_edits) of the array; no token id twice.
  int32_t first_edit = 0;
  int32_t num_edits = 0;
};

struct SampledRow {
  int32_t token_id = -1;  // -1: no token is possible, no logit is above minus infinity
  float logprob = 0;      // of token_id, natural logarithm; with num_logprobs >= 0
  // Best first, equal logits by lower id; tokens of probability 0 are left out.
  int32_t num_top = 0;
  int32_t top_ids[kMaxTopLogprobs] = {};
  float top_logprobs[kMaxTopLogprobs] = {};
};

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_SAMPLE_TOKENS_H_
