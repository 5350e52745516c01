// Expert products for many rows: 128 slots x 256 weight rows a tile. One thread feeds a ring of
// shared memory through the tensor memory accelerator; two warpgroups multiply 64 slots each by
// wgmma. CTAs stay and take tile after tile, so that the loads of a tile overlap the end of the one
// before.
//
// For gate and up the 256 weight rows are 128 of the gate and the same 128 of the up matrix: a
// thread holds both factors of its activations, and silu(gate) * up costs no extra pass.
//
// What limits it is the traffic from L2 to the multiprocessors. Clusters of four CTAs that share
// the slots by multicast move half the bytes and were half as fast: they wait for each other's
// weights.
#include <cuda_bf16.h>

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"
#include "engine/kernels/cuda/moe_kernels.h"

namespace hyserve::kernels::cuda {
namespace {

using namespace hopper;  // NOLINT: the vocabulary of this file

constexpr int kStages = 4;
constexpr int kDepth = 64;  // columns of K per stage: 128 bytes, one swizzle row
constexpr int kBoxBytes = kMoeBoxRows * kDepth * 2;
constexpr int kStageBytes = 3 * kBoxBytes;  // slots, and two boxes of weights
constexpr int kThreads = 3 * kWarpgroupThreads;
constexpr int kConsumerWarps = 8;
constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes + 1024;

// Makes a tensor map in global memory, written before the kernel, known to the copy engine.
__device__ __forceinline__ void AcquireTensorMap(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

struct Shared {
  char* ring;
  uint64_t* full;   // the bytes of a stage have landed
  uint64_t* empty;  // all consumers have read the stage
};

struct Work {
  MoeTile tile;
  int column;  // of out: the first
};

// Walks over a CTA's work. Neighbouring CTAs share a tile's slots, then an expert's weights.
template <bool kGateUp>
class Walk {
 public:
  static constexpr int kColumns = kGateUp ? kMoeBoxRows : 2 * kMoeBoxRows;

  __device__ Walk(const MoeGroupedArgs& args, const MoePlan& plan)
      : plan_(plan),
        column_tiles_((args.out_features + kColumns - 1) / kColumns),
        end_(*plan.num_tiles * column_tiles_),
        index_(blockIdx.x) {}
  __device__ bool Done() const { return index_ >= end_; }
  __device__ Work Get() const {
    return {plan_.tiles[index_ / column_tiles_], index_ % column_tiles_ * kColumns};
  }
  __device__ void Next() { index_ += gridDim.x; }

 private:
  const MoePlan& plan_;
  const int column_tiles_;
  const int end_;
  int index_;
};

template <bool kGateUp>
__device__ void Produce(const MoeGroupedArgs& args, const CUtensorMap* in_map, const MoePlan& plan,
                        const Shared& shared) {
  RingPosition<kStages> at;
  for (Walk<kGateUp> walk(args, plan); !walk.Done(); walk.Next()) {
    const Work work = walk.Get();
    const CUtensorMap* map = args.weight_maps + work.tile.expert;
    AcquireTensorMap(map);
    const int second = kGateUp ? args.out_features + work.column : work.column + kMoeBoxRows;
    for (int k = 0; k < args.in_features; k += kDepth) {
      BarrierWait(&shared.empty[at.stage], at.parity ^ 1);
      char* const stage = shared.ring + at.stage * kStageBytes;
      uint64_t* const full = &shared.full[at.stage];
      BarrierArriveExpect(full, kStageBytes);
      LoadTile2d(in_map, stage, full, k, work.tile.begin);
      LoadTile2d(map, stage + kBoxBytes, full, k, work.column);
      LoadTile2d(map, stage + 2 * kBoxBytes, full, k, second);
      at.Advance();
    }
  }
}

// This warp has read the stage.
__device__ __forceinline__ void Release(const Shared& shared, int stage) {
  if (threadIdx.x % 32 == 0) BarrierArrive(&shared.empty[stage]);
}

// acc[i] = 64 slots of the tile times box i of weights.
__device__ __forceinline__ void MultiplyTile(int in_features, int group, const Shared& shared,
                                             RingPosition<kStages>& at, float (&acc)[2][64]) {
  for (int k = 0; k < in_features; k += kDepth) {
    BarrierWait(&shared.full[at.stage], at.parity);
    const uint32_t stage = SharedAddress(shared.ring) + at.stage * kStageBytes;
    const uint64_t a = DescriptorKMajor(stage + group * (kBoxBytes / 2));
    const uint64_t b = DescriptorKMajor(stage + kBoxBytes);
    FenceRegisters(acc[0]);
    FenceRegisters(acc[1]);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      const int accumulate = k > 0 || step > 0 ? 1 : 0;
      const uint64_t a_step = AdvanceDescriptor(a, 32 * step);
      WgmmaShared<128, false>::Issue(acc[0], a_step, AdvanceDescriptor(b, 32 * step), accumulate);
      WgmmaShared<128, false>::Issue(acc[1], a_step, AdvanceDescriptor(b, kBoxBytes + 32 * step),
                                     accumulate);
    }
    WgmmaCommit();
    FenceRegisters(acc[0]);
    FenceRegisters(acc[1]);
    WgmmaWait<1>();  // the stage before has been read
    if (k > 0) Release(shared, (at.stage + kStages - 1) % kStages);
    at.Advance();
  }
  WgmmaWait<0>();
  FenceRegisters(acc[0]);
  FenceRegisters(acc[1]);
  Release(shared, (at.stage + kStages - 1) % kStages);
}

__device__ __forceinline__ void SkipTile(int in_features, const Shared& shared,
                                         RingPosition<kStages>& at) {
  for (int k = 0; k < in_features; k += kDepth) {
    BarrierWait(&shared.full[at.stage], at.parity);
    Release(shared, at.stage);
    at.Advance();
  }
}

// w_i: columns 8 i + 2 t, + 1 of lane t of a quad. The result: columns 8 t .. 8 t + 7, in order.
__device__ __forceinline__ uint4 TransposeQuad(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  const int t = threadIdx.x & 3;
  // The off-diagonal 2 x 2 blocks change places with lane t ^ 2, then elements with lane t ^ 1.
  const bool upper = (t & 2) != 0;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, upper ? w0 : w2, 2);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, upper ? w1 : w3, 2);
  const uint32_t p0 = upper ? a : w0, p1 = upper ? b : w1;
  const uint32_t p2 = upper ? w2 : a, p3 = upper ? w3 : b;
  const bool odd = (t & 1) != 0;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, odd ? p0 : p1, 1);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, odd ? p2 : p3, 1);
  return make_uint4(odd ? c : p0, odd ? p1 : c, odd ? d : p2, odd ? p3 : d);
}

__device__ __forceinline__ float SwiGluOf(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// 128 columns as packed pairs to one row of out.
__device__ __forceinline__ void StoreRow(const uint32_t (&words)[16], __nv_bfloat16* row,
                                         int column, int end) {
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
    const uint4 piece = TransposeQuad(words[i], words[i + 1], words[i + 2], words[i + 3]);
    const int first = column + 8 * i + 8 * (threadIdx.x & 3);
    if (row != nullptr && first < end) *reinterpret_cast<uint4*>(row + first) = piece;
  }
}

// The accumulators of rows + 0 (half 0) or + 8 (half 1).
template <bool kGateUp>
__device__ __forceinline__ void StoreHalf(const float (&acc)[2][64], int half, __nv_bfloat16* row,
                                          int column, int end) {
  uint32_t words[16];
  if constexpr (kGateUp) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int at = 4 * i + 2 * half;
      words[i] = PackBf16(SwiGluOf(acc[0][at], acc[1][at]),
                          SwiGluOf(acc[0][at + 1], acc[1][at + 1]));
    }
    StoreRow(words, row, column, end);
  } else {
#pragma unroll
    for (int box = 0; box < 2; ++box) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = 4 * i + 2 * half;
        words[i] = PackBf16(acc[box][at], acc[box][at + 1]);
      }
      StoreRow(words, row, column + box * kMoeBoxRows, end);
    }
  }
}

template <bool kGateUp>
__device__ void Consume(const MoeGroupedArgs& args, const MoePlan& plan, const Shared& shared) {
  const int group = threadIdx.x / kWarpgroupThreads - 1;  // 0 or 1
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  const int lane = threadIdx.x % 32;
  const int end = (args.out_features + 7) / 8 * 8;
  RingPosition<kStages> at;
  for (Walk<kGateUp> walk(args, plan); !walk.Done(); walk.Next()) {
    const Work work = walk.Get();
    if (work.tile.rows <= 64 * group) {  // nothing in this half of the tile
      SkipTile(args.in_features, shared, at);
      continue;
    }
    float acc[2][64];
    MultiplyTile(args.in_features, group, shared, at, acc);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_tile = 64 * group + 16 * warp + lane / 4 + 8 * half;
      __nv_bfloat16* const row = static_cast<__nv_bfloat16*>(args.out) +
                                 int64_t{work.tile.begin + in_tile} * args.out_stride;
      StoreHalf<kGateUp>(acc, half, in_tile < work.tile.rows ? row : nullptr, work.column, end);
    }
  }
}

template <bool kGateUp>
__global__ void __launch_bounds__(kThreads, 1)
    MoeGroupedKernel(const __grid_constant__ MoeGroupedArgs args,
                     const __grid_constant__ CUtensorMap in_map,
                     const __grid_constant__ MoePlan plan) {
  extern __shared__ char dynamic[];
  __shared__ uint64_t full[kStages];
  __shared__ uint64_t empty[kStages];
  const Shared shared = {dynamic + (1024 - SharedAddress(dynamic) % 1024) % 1024, full, empty};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroupThreads) {
    ReduceRegisters<40>();
    if (threadIdx.x == 0) Produce<kGateUp>(args, &in_map, plan, shared);
  } else {
    IncreaseRegisters<232>();
    Consume<kGateUp>(args, plan, shared);
  }
}

template <bool kGateUp>
cudaError_t Launch(const MoeGroupedArgs& args, const CUtensorMap& in_map, const MoePlan& plan,
                   cudaStream_t stream) {
  const auto kernel = MoeGroupedKernel<kGateUp>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(kSharedBytes));
      error != cudaSuccess) {
    return error;
  }
  kernel<<<args.num_sms, kThreads, kSharedBytes, stream>>>(args, in_map, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchMoeGroupedGateUp(const MoeGroupedArgs& args, const CUtensorMap& in_map,
                                   const MoePlan& plan, cudaStream_t stream) {
  return Launch<true>(args, in_map, plan, stream);
}

cudaError_t LaunchMoeGroupedDown(const MoeGroupedArgs& args, const CUtensorMap& in_map,
                                 const MoePlan& plan, cudaStream_t stream) {
  return Launch<false>(args, in_map, plan, stream);
}

}  // namespace hyserve::kernels::cuda
