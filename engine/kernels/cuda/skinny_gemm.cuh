// The kernel of skinny_gemm.h, for it and for the benchmark that chooses its parameters.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_CUH_
#define HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_CUH_

#include "engine/kernels/cuda/skinny_gemm.h"
#include "engine/kernels/cuda/skinny_tile.cuh"
#include "engine/kernels/cuda/vector_io.cuh"

namespace hyserve::kernels::cuda {

// A tile of weights is 16 rows: 16 outputs, or the gates and the ups of 8. A CTA computes
// kOutTiles * (8 / kSplit) tiles; kSplit warps share the chunks of K of each, and their sums are
// added in the order of the warps.
template <bool kSwiGlu>
constexpr int kSkinnyTileOuts = kSwiGlu ? 8 : 16;

template <bool kSwiGlu, int kSplit, int kOutTiles, int kRowTiles, int kDepth, int kMinBlocks>
__global__ void __launch_bounds__(kSkinnyThreads, kMinBlocks)
    SkinnyGemmKernel(const SkinnyGemmArgs args) {
  constexpr int kGroups = kSkinnyWarps / kSplit;
  constexpr int kTileOuts = kSkinnyTileOuts<kSwiGlu>;
  constexpr int kOuts = kTileOuts * kOutTiles;
  constexpr int kRows = 8 * kRowTiles;
  __shared__ float partial[kSkinnyWarps][kRows][16 * kOutTiles + 4];

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t block_out = static_cast<int64_t>(blockIdx.x) * kOuts * kGroups;
  const int64_t first_out = block_out + warp / kSplit * kOuts;
  const auto* weight = static_cast<const __nv_bfloat16*>(args.weight);
  const __nv_bfloat16* w[2 * kOutTiles];
#pragma unroll
  for (int i = 0; i < 2 * kOutTiles; ++i) {
    // Past the last output the last row is read again and the result is dropped.
    const int64_t out =
        min(first_out + (kSwiGlu ? i / 2 : i) * 8 + lane / 4, args.out_features - 1);
    w[i] = weight + (kSwiGlu && i % 2 == 1 ? args.out_features + out : out) * args.weight_stride;
  }
  const __nv_bfloat16* x[kRowTiles];
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j) {
    const int row = 8 * j + lane / 4;
    x[j] = row < args.rows ? static_cast<const __nv_bfloat16*>(args.x) + row * args.x_stride
                           : nullptr;
  }
  float acc[kOutTiles][kRowTiles][4] = {};
  StreamTile<kOutTiles, kRowTiles, kDepth>(w, x, (args.in_features + 7) / 8 * 8, warp % kSplit,
                                           kSplit, acc, [] {
                                             LetNextKernelStart();
                                             WaitForPriorKernels();
                                           });
  StorePartial<kOutTiles, kRowTiles>(acc, partial[warp]);
  __syncthreads();
  for (int i = threadIdx.x; i < kOuts * kGroups * args.rows; i += kSkinnyThreads) {
    const int row = i / (kOuts * kGroups);
    const int out = i % (kOuts * kGroups);
    if (block_out + out >= args.out_features) continue;
    const int first_warp = out / kOuts * kSplit;
    const auto sum_of = [&](int column) {
      float sum = partial[first_warp][row][column];
#pragma unroll
      for (int part = 1; part < kSplit; ++part) sum += partial[first_warp + part][row][column];
      return sum;
    };
    const int column = out % kOuts / kTileOuts * 16 + out % kTileOuts;
    const int64_t at = row * args.y_stride + block_out + out;
    const float sum = sum_of(column);
    if constexpr (kSwiGlu) {
      const float gate = __bfloat162float(__float2bfloat16_rn(sum));
      const float up = __bfloat162float(__float2bfloat16_rn(sum_of(column + 8)));
      static_cast<__nv_bfloat16*>(args.y)[at] = __float2bfloat16_rn(Silu(gate) * up);
    } else if (args.y_is_f32) {
      static_cast<float*>(args.y)[at] = sum;
    } else {
      static_cast<__nv_bfloat16*>(args.y)[at] = __float2bfloat16_rn(sum);
    }
  }
}

template <bool kSwiGlu, int kSplit, int kOutTiles, int kRowTiles, int kDepth, int kMinBlocks>
cudaError_t LaunchSkinnyVariant(const SkinnyGemmArgs& args, cudaStream_t stream) {
  constexpr int kOuts = kSkinnyTileOuts<kSwiGlu> * kOutTiles * (kSkinnyWarps / kSplit);
  const auto grid = static_cast<unsigned>((args.out_features + kOuts - 1) / kOuts);
  return LaunchOverlapped(
      SkinnyGemmKernel<kSwiGlu, kSplit, kOutTiles, kRowTiles, kDepth, kMinBlocks>, dim3(grid),
      kSkinnyThreads, 0, stream, args);
}

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_SKINNY_GEMM_CUH_
