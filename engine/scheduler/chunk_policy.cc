#include "engine/scheduler/chunk_policy.h"

#include <algorithm>
#include <numeric>

#include "engine/kv_cache/check.h"
#include "engine/kv_cache/kv_layout.h"

namespace hyserve::scheduler {
namespace {

using kv_cache::kTokensPerBlock;

int32_t Fit(const PromptWork& work, int32_t share) {
  const int32_t rows = std::min(share, work.rows_to_stop);
  return rows == work.rows_to_stop ? rows : rows / kTokensPerBlock * kTokensPerBlock;
}

}  // namespace

std::vector<int32_t> ShareRows(std::span<const PromptWork> prompts, int32_t budget, uint64_t turn) {
  HYSERVE_CHECK(budget >= kTokensPerBlock);
  std::vector<int32_t> rows(prompts.size(), 0);
  if (prompts.empty()) return rows;

  int32_t left = budget;
  int32_t reserved = budget / 2 / kTokensPerBlock * kTokensPerBlock;
  if (reserved == 0 && turn % 2 == 0) reserved = budget;
  rows[0] = Fit(prompts[0], reserved);
  left -= rows[0];

  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&prompts](size_t a, size_t b) {
    return prompts[a].remaining_tokens < prompts[b].remaining_tokens;
  });
  for (const size_t i : order) {
    const int32_t fit = Fit(prompts[i], rows[i] + left);
    if (fit <= rows[i]) continue;
    left -= fit - rows[i];
    rows[i] = fit;
  }
  return rows;
}

int32_t ChunkTokensWhileGenerating(int32_t chunk_tokens) {
  return std::max(kTokensPerBlock, chunk_tokens / 4 / kTokensPerBlock * kTokensPerBlock);
}

int64_t MostRowsPerStep(int32_t chunk_tokens, int32_t max_sequences) {
  const int64_t beside =
      std::min(chunk_tokens, ChunkTokensWhileGenerating(chunk_tokens)) + max_sequences - int64_t{1};
  return std::max<int64_t>({chunk_tokens, beside, max_sequences});
}

}  // namespace hyserve::scheduler
