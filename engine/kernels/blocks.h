// Sizes of the blocks that caches, kernels and the selection share. No includes: also for code that
// uses nothing of the standard library (cpu/simd_kernels.h).
#ifndef HYSERVE_ENGINE_KERNELS_BLOCKS_H_
#define HYSERVE_ENGINE_KERNELS_BLOCKS_H_

namespace hyserve::kernels {

inline constexpr int kBlockTokens = 64;        // of a page, and of a selected block
inline constexpr int kMaxSelectedBlocks = 64;  // per query row and KV head

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_BLOCKS_H_
