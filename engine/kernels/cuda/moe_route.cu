// Choice of experts, the order of pairs by expert, and the weighted sum at the end.
#include <cuda_bf16.h>

#include "engine/kernels/cuda/moe_kernels.h"
#include "engine/kernels/cuda/overlap.cuh"

namespace hyserve::kernels::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kScanThreads = 1024;
constexpr int kOneBlockPairs = 64;  // up to so many one CTA routes and sorts faster than three
constexpr int kOneBlockThreads = 1024;

// Unsigned integers in the order of floats; 0 is below all. NaN counts as the least float.
__device__ __forceinline__ uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes +0
  if (value != value) return 1;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// A warp routes one row: lane i < per_token gets the row's i-th expert and its weight.
template <int kPerLane>
__device__ void RouteRow(const MoeRouteArgs& args, const MoePlan& plan, int row, int* expert,
                         float* weight) {
  const int lane = threadIdx.x % 32;
  const float* logits = args.logits + row * args.logits_stride;
  float score[kPerLane];
  uint32_t key[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = 32 * i + lane;
    const bool exists = e < plan.num_experts;
    score[i] = exists ? 1.0f / (1.0f + expf(-logits[e])) : 0.0f;
    const float bias = exists && args.bias != nullptr ? args.bias[e] : 0.0f;
    key[i] = exists ? OrderedBits(score[i] + bias) : 0;
  }
  int chosen = 0x7fffffff;
  float chosen_score = 0;
  uint32_t own_best = 0;  // of this lane, and its expert and score
  int own_expert = 0x7fffffff;
  float own_score = 0;
  const auto look = [&] {
    own_best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (key[i] > own_best) {
        own_best = key[i];
        own_expert = 32 * i + lane;
        own_score = score[i];
      }
    }
  };
  look();
  for (int turn = 0; turn < plan.per_token; ++turn) {
    const uint32_t best = __reduce_max_sync(kAllLanes, own_best);
    const int first =
        __reduce_min_sync(kAllLanes, own_best == best ? own_expert : 0x7fffffff);
    const float won = __shfl_sync(kAllLanes, own_score, first & 31);
    if (lane == turn) {
      chosen = first;
      chosen_score = won;
    }
    if (own_expert == first) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (32 * i + lane == first) key[i] = 0;
      }
      look();
    }
  }
  // Ascending order, and the sum in that order.
  int place = 0;
  for (int i = 0; i < plan.per_token; ++i) {
    place += __shfl_sync(kAllLanes, chosen, i) < chosen ? 1 : 0;
  }
  int sorted = 0;
  float sorted_score = 0;
  float sum = 0;
  for (int i = 0; i < plan.per_token; ++i) {
    const unsigned holder = __ballot_sync(kAllLanes, lane < plan.per_token && place == i);
    const int source = __ffs(holder) - 1;
    const int e = __shfl_sync(kAllLanes, chosen, source);
    const float s = __shfl_sync(kAllLanes, chosen_score, source);
    sum += s;
    if (lane == i) {
      sorted = e;
      sorted_score = s;
    }
  }
  *expert = sorted;
  *weight = sorted_score * (args.scaling_factor / (args.normalize ? sum : 1.0f));
}

// One CTA: first slots and tiles from the counts.
__global__ void __launch_bounds__(kScanThreads) ScanKernel(const MoePlan plan) {
  __shared__ uint64_t warp_sums[kScanThreads / 32];
  static_assert(kScanThreads == kMoeMaxExperts);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int e = threadIdx.x;
  const int pairs = e < plan.num_experts ? plan.count[e] : 0;
  const int tiles = (pairs + plan.tile_rows - 1) / plan.tile_rows;
  const uint64_t own = (static_cast<uint64_t>(tiles) << 32) + pairs;
  uint64_t sum = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += before;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  uint64_t base = 0;
  for (int i = 0; i < warp; ++i) base += warp_sums[i];
  const uint64_t place = base + sum - own;
  const int first = static_cast<int>(place & 0xffffffffu);
  const int first_tile = static_cast<int>(place >> 32);
  if (e < plan.num_experts) plan.begin[e] = first;
  for (int i = 0; i < tiles; ++i) {
    const int done = i * plan.tile_rows;
    plan.tiles[first_tile + i] = {e, first + done, min(plan.tile_rows, pairs - done), 0};
  }
  if (e == kScanThreads - 1) *plan.num_tiles = first_tile + tiles;
}

// All of it for a few rows: one CTA with a warp per row and a thread per pair. A pair finds its
// place by comparing with all pairs.
template <int kPerLane>
__global__ void __launch_bounds__(kOneBlockThreads)
    RouteOneBlockKernel(const MoeRouteArgs args, const MoePlan plan) {
  __shared__ int4 experts[kOneBlockThreads / 4];
  __shared__ uint32_t heads[kOneBlockThreads / 32];  // by slot: whether a tile begins there
  LetNextKernelStart();
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32;
  const int thread = threadIdx.x;
  const int pairs = plan.rows * plan.per_token;
  int* const expert_at = reinterpret_cast<int*>(experts);
  if (lane == 0) heads[row] = 0;
  expert_at[thread] = 0x7fffffff;
  __syncthreads();
  WaitForPriorKernels();
  if (row < plan.rows) {
    int expert = 0;
    float weight = 0;
    RouteRow<kPerLane>(args, plan, row, &expert, &weight);
    if (lane < plan.per_token) {
      const int pair = row * plan.per_token + lane;
      expert_at[pair] = expert;
      plan.expert_of[pair] = expert;
      plan.weight_of[pair] = weight;
    }
  }
  __syncthreads();
  const int own = expert_at[thread];
  int below = 0;   // pairs of lower experts
  int rank = 0;    // pairs before this one of the same expert
  int equals = 0;  // pairs of this expert
  for (int i = 0; 4 * i < pairs; ++i) {
    const int4 four = experts[i];
    const int others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      below += others[j] < own ? 1 : 0;
      equals += others[j] == own ? 1 : 0;
      rank += others[j] == own && 4 * i + j < thread ? 1 : 0;
    }
  }
  const int slot = below + rank;
  const bool head = thread < pairs && rank % plan.tile_rows == 0;
  if (thread < pairs) {
    plan.slot_of[thread] = slot;
    plan.row_of[slot] = thread / plan.per_token;
    if (head) atomicOr(&heads[slot / 32], 1u << (slot % 32));
  }
  const int num_tiles = __syncthreads_count(head);
  if (thread == 0) *plan.num_tiles = num_tiles;
  if (!head) return;
  int tile = __popc(heads[slot / 32] & ((1u << (slot % 32)) - 1));
  for (int i = 0; i < slot / 32; ++i) tile += __popc(heads[i]);
  plan.tiles[tile] = {own, slot, min(plan.tile_rows, equals - rank), 0};
}

// slot_of gets the rank of the pair among those of its expert; SlotKernel makes a slot of it.
template <int kPerLane>
__global__ void RouteKernel(const MoeRouteArgs args, const MoePlan plan) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= plan.rows) return;
  int expert = 0;
  float weight = 0;
  RouteRow<kPerLane>(args, plan, row, &expert, &weight);
  if (lane < plan.per_token) {
    const int64_t pair = int64_t{row} * plan.per_token + lane;
    plan.expert_of[pair] = expert;
    plan.weight_of[pair] = weight;
    plan.slot_of[pair] = atomicAdd(&plan.count[expert], 1);
  }
}

__global__ void SlotKernel(const MoePlan plan) {
  const int64_t pair = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (pair >= int64_t{plan.rows} * plan.per_token) return;
  const int slot = plan.begin[plan.expert_of[pair]] + plan.slot_of[pair];
  plan.slot_of[pair] = slot;
  plan.row_of[slot] = static_cast<int>(pair / plan.per_token);
}

__global__ void GatherKernel(const MoeGatherArgs args, const MoePlan plan) {
  const int slot = blockIdx.x;
  const auto* from = reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(args.x) +
                                                    plan.row_of[slot] * args.x_stride);
  auto* to = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.sorted) +
                                      slot * args.sorted_stride);
  for (int i = threadIdx.x; i < (args.cols + 7) / 8; i += blockDim.x) to[i] = from[i];
}

__device__ __forceinline__ float AsFloat(float value) { return value; }
__device__ __forceinline__ float AsFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

template <typename Y, int kWidth>
__global__ void CombineKernel(const MoeCombineArgs args, const MoePlan plan) {
  LetNextKernelStart();
  WaitForPriorKernels();
  const int row = blockIdx.x;
  const int64_t first_pair = int64_t{row} * plan.per_token;
  for (int col = threadIdx.x * kWidth; col < args.cols; col += blockDim.x * kWidth) {
    float sum[kWidth] = {};
    for (int i = 0; i < plan.per_token; ++i) {
      const float weight = plan.weight_of[first_pair + i];
      const Y* y = static_cast<const Y*>(args.y) + plan.slot_of[first_pair + i] * args.y_stride;
      const auto piece = *reinterpret_cast<const Pack<Y, kWidth>*>(y + col);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] = fmaf(weight, AsFloat(piece.values[j]), sum[j]);
    }
    Pack<__nv_bfloat16, kWidth> out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out.values[j] = __float2bfloat16_rn(sum[j]);
    *reinterpret_cast<Pack<__nv_bfloat16, kWidth>*>(static_cast<__nv_bfloat16*>(args.out) +
                                                    row * args.out_stride + col) = out;
  }
}

template <int kPerLane>
cudaError_t LaunchRoute(const MoeRouteArgs& args, const MoePlan& plan, cudaStream_t stream) {
  const int64_t pairs = int64_t{plan.rows} * plan.per_token;
  if constexpr (kPerLane <= 16) {  // more would not fit the registers of so large a CTA
    if (plan.rows <= kOneBlockThreads / 32 && pairs <= kOneBlockPairs) {
      const int threads = (std::max<int>(32 * plan.rows, static_cast<int>(pairs)) + 31) / 32 * 32;
      return LaunchOverlapped(RouteOneBlockKernel<kPerLane>, dim3(1), threads, 0, stream, args,
                              plan);
    }
  }
  if (cudaError_t error =
          cudaMemsetAsync(plan.count, 0, plan.num_experts * sizeof(int), stream);
      error != cudaSuccess) {
    return error;
  }
  constexpr int kThreads = 128;
  RouteKernel<kPerLane><<<(plan.rows * 32 + kThreads - 1) / kThreads, kThreads, 0, stream>>>(args,
                                                                                            plan);
  ScanKernel<<<1, kScanThreads, 0, stream>>>(plan);
  SlotKernel<<<(pairs + 255) / 256, 256, 0, stream>>>(plan);
  return cudaGetLastError();
}

template <typename Y>
cudaError_t LaunchCombine(const MoeCombineArgs& args, const MoePlan& plan, cudaStream_t stream) {
  const bool wide = args.cols % 8 == 0 && args.out_stride % 8 == 0 && args.y_stride % 8 == 0 &&
                    reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  const int pieces = wide ? args.cols / 8 : args.cols;
  const int threads = std::clamp((pieces + 31) / 32 * 32, 32, 256);
  return LaunchOverlapped(wide ? CombineKernel<Y, 8> : CombineKernel<Y, 1>, dim3(plan.rows),
                          threads, 0, stream, args, plan);
}

}  // namespace

cudaError_t LaunchMoeRoute(const MoeRouteArgs& args, const MoePlan& plan, cudaStream_t stream) {
  if (plan.num_experts <= 64) return LaunchRoute<2>(args, plan, stream);
  if (plan.num_experts <= 256) return LaunchRoute<8>(args, plan, stream);
  if (plan.num_experts <= 512) return LaunchRoute<16>(args, plan, stream);
  return LaunchRoute<kMoeMaxExperts / 32>(args, plan, stream);
}

cudaError_t LaunchMoeGather(const MoeGatherArgs& args, const MoePlan& plan, cudaStream_t stream) {
  GatherKernel<<<plan.rows * plan.per_token, 128, 0, stream>>>(args, plan);
  return cudaGetLastError();
}

cudaError_t LaunchMoeCombine(const MoeCombineArgs& args, const MoePlan& plan,
                             cudaStream_t stream) {
  return args.y_is_f32 ? LaunchCombine<float>(args, plan, stream)
                       : LaunchCombine<__nv_bfloat16>(args, plan, stream);
}

}  // namespace hyserve::kernels::cuda
