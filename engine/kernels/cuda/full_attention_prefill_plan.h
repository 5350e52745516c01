// Cuts the rows of a prefill into kernel launches and describes its tensors to the copy engine.
// Host code, plain types.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PLAN_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/kernels/cuda/full_attention_prefill_kernel.h"

namespace hyserve::kernels::cuda {

// Raw scores of one launch take at most this, or what one row tile needs if that is more. A little
// over 1 GiB, so that two row tiles of 64 heads fit at 1M tokens.
inline constexpr int64_t kPrefillScoreBytes = int64_t{1100} << 20;

struct PrefillSequence {
  int32_t first_row = 0;
  int32_t num_rows = 0;  // > 0
  int32_t first_position = 0;
  int32_t sequence = 0;
};

struct PrefillPlanOptions {
  int num_heads = 0;
  int heads_per_group = 0;
  int kv_bytes_per_token = 0;  // of one KV head, keys and values
  int num_sms = 0;
  bool with_scores = false;
  int64_t score_bytes = kPrefillScoreBytes;
};

struct PrefillStep {
  std::vector<PrefillSegment> segments;  // at most kMaxPrefillSegments
  int num_tiles = 0;
  int64_t score_elements = 0;  // 0 without scores
  int64_t lse_elements = 0;
};

// Every row is in exactly one segment of one step. How rows are cut does not change their results.
std::vector<PrefillStep> PlanPrefill(std::span<const PrefillSequence> sequences,
                                     const PrefillPlanOptions& options);

// score_elements + lse_elements of no step are more, for up to `num_rows` rows in sequences of at
// least `least_rows` rows each (<= kPrefillTileRows) and contexts of up to `context` tokens.
int64_t MostPrefillElements(int64_t num_rows, int least_rows, int64_t context,
                            const PrefillPlanOptions& options);

struct PrefillTensors {
  const void* q = nullptr;  // bf16 [q_rows, num_heads * head_dim], 16-byte aligned
  int64_t q_rows = 0;
  int64_t q_row_stride = 0;  // elements, a multiple of 8
  int num_heads = 0;
  const void* kv = nullptr;  // pages of one layer, as in kv_cache/kv_layout.h, bf16
  int64_t num_blocks = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
};

// Fills launch->q, k and v.
cudaError_t EncodePrefillMaps(const PrefillTensors& tensors, PrefillLaunch* launch);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_PLAN_H_
