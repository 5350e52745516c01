// How the prompt rows of one step are shared among the prompts that are being computed. Pure.
//
// The oldest prompt gets half of the budget, the rest goes to the shortest remaining first (ties to
// the older). So a short prompt is not stuck behind a long one, and a long one is not starved by
// short ones: it becomes the oldest in the end and then computes at no less than half of the full
// rate. A budget too small to be halved goes to the oldest and to the shortest in turn.
#ifndef HYSERVE_ENGINE_SCHEDULER_CHUNK_POLICY_H_
#define HYSERVE_ENGINE_SCHEDULER_CHUNK_POLICY_H_

#include <cstdint>
#include <span>
#include <vector>

namespace hyserve::scheduler {

struct PromptWork {
  int32_t remaining_tokens = 0;  // of the whole prompt
  int32_t rows_to_stop = 0;      // a chunk must not go past this; 1 .. remaining_tokens
};

// Rows per prompt, in the order of `prompts` (oldest first); their sum is at most `budget`, a
// multiple of 64. A chunk that does not reach its stop is a multiple of 64 rows. At least one
// prompt gets rows. `turn` decides whose turn it is when the budget cannot be halved.
std::vector<int32_t> ShareRows(std::span<const PromptWork> prompts, int32_t budget, uint64_t turn);

// Prompt rows of a step while any sequence generates, where the options leave it open: a quarter of
// a chunk, in blocks.
int32_t ChunkTokensWhileGenerating(int32_t chunk_tokens);

// No step has more rows: a whole chunk where nothing generates, otherwise fewer prompt rows of one
// sequence or more beside one row of each of the others.
int64_t MostRowsPerStep(int32_t chunk_tokens, int32_t max_sequences);

}  // namespace hyserve::scheduler

#endif  // HYSERVE_ENGINE_SCHEDULER_CHUNK_POLICY_H_
