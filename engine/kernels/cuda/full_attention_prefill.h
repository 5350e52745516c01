// Full attention with oracle output for sequences with many rows in the step: tensor-core kernel
// (full_attention_prefill_kernel.h), then the selection of blocks (select_blocks_prefill.h).
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/reserve.h"
#include "engine/tensor/cuda_device.h"

namespace hyserve::kernels::cuda {

// Rows of a sequence in a step from which the kernel's tiles are worth it.
inline constexpr int kPrefillRows = 64;

// Whether the kernel can do this call: bf16 throughout; head sizes 64/64, 128/128, 192/128 or
// 256/256; rows of q and out and the pages at multiples of 16 bytes; a positive, finite scale.
bool FullPrefillSupports(const FullAttentionParams& params);

// The rows of the given sequences of params.batch; other rows of out, selection and block_scores
// are not touched. REQUIRES FullPrefillSupports(params). A row's results depend on its own sequence
// alone, bit for bit, and not on how its prompt is cut into calls. Enqueues only; takes workspace
// kAttention: about 1 GiB at most when there is a selection. Errors: those of the device.
absl::Status FullAttentionPrefill(tensor::CudaDevice& device, const FullAttentionParams& params,
                                  std::span<const int> sequences);

// What FullAttentionPrefill takes of kAttention at most.
size_t MostPrefillWorkspaceBytes(const AttentionLimits& limits);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_H_
