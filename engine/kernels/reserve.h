// Device memory that ops keep for their own use (workspaces, tables), brought to the size of the
// largest step at once: afterwards no op within the limits allocates, what recordings of steps hold
// stays valid, and what the device has free then is really free.
//
// The CPU's ops take their memory as steps need it, and go on to: these calls do nothing there.
// Errors: the device's, RESOURCE_EXHAUSTED above all.
#ifndef HYSERVE_ENGINE_KERNELS_RESERVE_H_
#define HYSERVE_ENGINE_KERNELS_RESERVE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/kernels/ops.h"

namespace hyserve::kernels {

// params: the call of this op that has the most rows, where its rows will lie; contents are not
// touched.
absl::Status ReserveLinear(Device& device, const LinearParams& params);
absl::Status ReserveMixtureOfExperts(Device& device, const MoeParams& params);

// Attention's bounds over all steps.
struct AttentionLimits {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  int selected_blocks = 0;     // full: that it selects; window: that it reads; 0: none
  int64_t num_rows = 0;        // of a step
  int64_t num_seqs = 0;        // of a step
  int64_t context_tokens = 0;  // of a sequence: AttentionBatch::max_context or context_bound
};
absl::Status ReserveFullAttention(Device& device, const AttentionLimits& limits);
absl::Status ReserveWindowSparseAttention(Device& device, const AttentionLimits& limits);

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_RESERVE_H_
