// The formulas of ops.h in double precision and in the plainest form: one loop per symbol.
#ifndef HYSERVE_TESTS_ENGINE_KERNELS_REFERENCE_OPS_H_
#define HYSERVE_TESTS_ENGINE_KERNELS_REFERENCE_OPS_H_

#include <cstdint>
#include <vector>

namespace hyserve::kernels::testing {

using Doubles = std::vector<double>;

// y [m, n] = x [m, k] w^T, w [n, k].
Doubles ReferenceLinear(const std::vector<float>& x, const std::vector<float>& w, int64_t m,
                        int64_t n, int64_t k);
double ReferenceSigmoid(double x);

// Keys and values of one sequence and KV head: [tokens][dim].
struct KeyValues {
  int head_dim = 0;
  int v_head_dim = 0;
  std::vector<float> keys;
  std::vector<float> values;
  int64_t tokens() const { return static_cast<int64_t>(keys.size()) / head_dim; }
};

struct ReferenceRow {
  Doubles out;           // [v_head_dim]
  Doubles block_scores;  // [blocks of 64], max logit - LSE
  double lse = 0;
  double largest_logit = 0;  // in absolute value
};

// Softmax attention of one query head over the given positions, with an optional sink.
ReferenceRow ReferenceAttention(const float* q, const KeyValues& kv, double scale,
                                const std::vector<int64_t>& positions, const float* sink);

// The k best indices by (score descending, index ascending), ascending, padded with -1.
std::vector<int32_t> ReferenceSelection(const Doubles& scores, int k);

}  // namespace hyserve::kernels::testing

#endif  // HYSERVE_TESTS_ENGINE_KERNELS_REFERENCE_OPS_H_
