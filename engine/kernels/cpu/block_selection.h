// Exact top-k of block scores.
#ifndef HYSERVE_ENGINE_KERNELS_CPU_BLOCK_SELECTION_H_
#define HYSERVE_ENGINE_KERNELS_CPU_BLOCK_SELECTION_H_

#include <cstdint>

namespace hyserve::kernels::cpu {

// Writes the k best indices of scores[0, n) by (score descending, index ascending) to out, in
// ascending order of index, padded with -1. A NaN is never better than a number that came before.
// REQUIRES: 1 <= k <= kMaxSelectedBlocks (blocks.h).
void SelectBlocks(const float* scores, int64_t n, int k, int32_t* out);

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_BLOCK_SELECTION_H_
