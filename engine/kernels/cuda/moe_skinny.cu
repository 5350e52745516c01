// Expert products for few rows per expert: the streaming loop of skinny_tile.cuh, one tile of slots
// and 16 to 64 outputs a CTA.
#include "engine/kernels/cuda/moe_kernels.h"
#include "engine/kernels/cuda/skinny_tile.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr int kOutTiles = 2;
constexpr int kOuts = 16 * kOutTiles;
constexpr int kDepth = 2;

// kGateUp: a warp's two output tiles are 16 gate columns and the same 16 up columns. Otherwise they
// are 32 outputs. kSplit warps share K.
template <bool kGateUp, int kSplit>
__global__ void __launch_bounds__(kSkinnyThreads, 2)
    MoeSkinnyKernel(const MoeSkinnyArgs args, const MoePlan plan) {
  constexpr int kGroups = kSkinnyWarps / kSplit;
  constexpr int kGroupOuts = kGateUp ? 16 : kOuts;  // columns of out per group of warps
  __shared__ float partial[kSkinnyWarps][kMoeSkinnyRows][kOuts + 4];
  // Before gate and up let down start, they have waited for the plan to be complete: down may read
  // it and load weights at once, and waits only for act.
  const auto wait = [] {
    WaitForPriorKernels();
    LetNextKernelStart();
  };
  if (kGateUp) wait();
  const MoeTile tile = plan.tiles[blockIdx.y];  // both loads at once: there are as many places
  const int num_tiles = *plan.num_tiles;
  if (static_cast<int>(blockIdx.y) >= num_tiles) {
    if (!kGateUp) wait();
    return;
  }
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int block_out = blockIdx.x * kGroupOuts * kGroups;
  const int first_out = block_out + warp / kSplit * kGroupOuts;
  const auto* weight = static_cast<const __nv_bfloat16*>(args.weights[tile.expert]);
  const __nv_bfloat16* w[2 * kOutTiles];
#pragma unroll
  for (int i = 0; i < 2 * kOutTiles; ++i) {
    const int part = kGateUp ? i % 2 : i;
    const int64_t out = min(first_out + 8 * part + lane / 4, args.out_features - 1);
    w[i] = weight + (kGateUp && i >= 2 ? args.out_features + out : out) * args.weight_stride;
  }
  const __nv_bfloat16* x[1] = {nullptr};
  if (lane / 4 < tile.rows) {
    const int slot = tile.begin + lane / 4;
    const int64_t row = kGateUp ? plan.row_of[slot] : slot;
    x[0] = static_cast<const __nv_bfloat16*>(args.in) + row * args.in_stride;
  }
  float acc[kOutTiles][1][4] = {};
  StreamTile<kOutTiles, 1, kDepth>(w, x, (args.in_features + 7) / 8 * 8, warp % kSplit, kSplit,
                                   acc, [&] {
                                     if (!kGateUp) wait();
                                   });
  StorePartial<kOutTiles, 1>(acc, partial[warp]);
  __syncthreads();
  const int end = kGateUp ? (args.out_features + 7) / 8 * 8 : args.out_features;
  for (int i = threadIdx.x; i < kGroupOuts * kGroups * tile.rows; i += kSkinnyThreads) {
    const int row = i / (kGroupOuts * kGroups);
    const int out = i % (kGroupOuts * kGroups);
    if (block_out + out >= end) continue;
    const int first_warp = out / kGroupOuts * kSplit;
    const int column = out % kGroupOuts;
    float sum = 0;
    float up = 0;
#pragma unroll
    for (int part = 0; part < kSplit; ++part) {
      sum += partial[first_warp + part][row][column];
      if (kGateUp) up += partial[first_warp + part][row][column + 16];
    }
    const int64_t at = int64_t{tile.begin + row} * args.out_stride + block_out + out;
    if (kGateUp) {
      const bool exists = block_out + out < args.out_features;
      const float act = exists ? sum / (1.0f + expf(-sum)) * up : 0.0f;
      static_cast<__nv_bfloat16*>(args.out)[at] = __float2bfloat16_rn(act);
    } else {
      static_cast<float*>(args.out)[at] = sum;
    }
  }
}

template <bool kGateUp, int kSplit>
cudaError_t LaunchSplit(const MoeSkinnyArgs& args, const MoePlan& plan, cudaStream_t stream) {
  constexpr int kBlockOuts = (kGateUp ? 16 : kOuts) * (kSkinnyWarps / kSplit);
  const dim3 grid(
      (args.out_features + kBlockOuts - 1) / kBlockOuts,
      MaxMoeTiles(int64_t{plan.rows} * plan.per_token, plan.num_experts, kMoeSkinnyRows));
  return LaunchOverlapped(MoeSkinnyKernel<kGateUp, kSplit>, grid, kSkinnyThreads, 0, stream, args,
                          plan);
}

// The split is a function of K alone: a row's bits do not depend on the other rows.
constexpr int SplitOf(int in_features) {
  return in_features <= 512 ? 2 : in_features <= 1024 ? 4 : 8;
}

template <bool kGateUp>
cudaError_t Launch(const MoeSkinnyArgs& args, const MoePlan& plan, cudaStream_t stream) {
  switch (SplitOf(args.in_features)) {
    case 2: return LaunchSplit<kGateUp, 2>(args, plan, stream);
    case 4: return LaunchSplit<kGateUp, 4>(args, plan, stream);
    default: return LaunchSplit<kGateUp, 8>(args, plan, stream);
  }
}

}  // namespace

cudaError_t LaunchMoeSkinnyGateUp(const MoeSkinnyArgs& args, const MoePlan& plan,
                                  cudaStream_t stream) {
  return Launch<true>(args, plan, stream);
}

cudaError_t LaunchMoeSkinnyDown(const MoeSkinnyArgs& args, const MoePlan& plan,
                                cudaStream_t stream) {
  return Launch<false>(args, plan, stream);
}

}  // namespace hyserve::kernels::cuda
