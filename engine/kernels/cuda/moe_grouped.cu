// Expert products for many rows: tiles of 256 slots x 128 weight rows. One thread feeds a ring of
// shared memory through the tensor memory accelerator; two warpgroups multiply by wgmma, 64 or, where
// the expert has more than 128 rows, 128 slots each. A cluster of CTAs takes neighbouring weight rows
// of the same slots; each CTA loads a part of the slots for all of them, so that the slots cross the
// L2 cache's port once. Clusters stay and take tile after tile, so that the loads of a tile overlap
// the end of the one before.
//
// For gate and up the 128 weight rows are 64 of the gate and the same 64 of the up matrix: a thread
// holds both factors of its activations, and silu(gate) * up costs no extra pass.
#include <cuda_bf16.h>

#include <algorithm>

#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"
#include "engine/kernels/cuda/moe_kernels.h"

namespace hyserve::kernels::cuda {
namespace {

using namespace hopper;  // NOLINT: the vocabulary of this file

constexpr int kCluster = kMoeGroupedRows / kMoeInBoxRows;  // CTAs, each loads one box of slots
constexpr int kStages = 4;
constexpr int kDepth = 64;  // columns of K per stage: 128 bytes, one swizzle row
constexpr int kInBoxBytes = kMoeInBoxRows * kDepth * 2;
constexpr int kInBytes = kMoeGroupedRows * kDepth * 2;
constexpr int kWeightBoxBytes = kMoeWeightBoxRows * kDepth * 2;
constexpr int kStageBytes = kInBytes + 2 * kWeightBoxBytes;
constexpr int kThreads = 3 * kWarpgroupThreads;
constexpr int kConsumerWarps = 8;
constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes + 1024;

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// Makes a tensor map in global memory, written before the kernel, known to the copy engine.
__device__ __forceinline__ void AcquireTensorMap(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}
// To the same place of every CTA of the cluster; each one's own barrier counts the bytes.
__device__ __forceinline__ void LoadTileForCluster(const CUtensorMap* map, void* shared,
                                                   uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y),
      "h"(static_cast<uint16_t>((1 << kCluster) - 1))
      : "memory");
}

struct Shared {
  char* ring;
  uint64_t* full;   // the bytes of a stage have landed
  uint64_t* empty;  // all consumers of the cluster have read the stage
};

struct Work {
  MoeTile tile;
  int column;  // of out: first of this CTA
};

// Walks over a cluster's work: the groups of neighbouring columns of a tile, tile after tile.
template <bool kGateUp>
class Walk {
 public:
  static constexpr int kColumns = kGateUp ? 64 : 128;

  __device__ Walk(const MoeGroupedArgs& args, const MoePlan& plan)
      : plan_(plan),
        groups_((args.out_features + kCluster * kColumns - 1) / (kCluster * kColumns)),
        end_(*plan.num_tiles * groups_),
        index_(blockIdx.x / kCluster) {}
  __device__ bool Done() const { return index_ >= end_; }
  __device__ Work Get() const {
    const int group = index_ % groups_;
    return {plan_.tiles[index_ / groups_],
            (group * kCluster + static_cast<int>(ClusterRank())) * kColumns};
  }
  __device__ void Next() { index_ += gridDim.x / kCluster; }

 private:
  const MoePlan& plan_;
  const int groups_;
  const int end_;
  int index_;
};

template <bool kGateUp>
__device__ void Produce(const MoeGroupedArgs& args, const CUtensorMap* in_map, const MoePlan& plan,
                        const Shared& shared) {
  const int rank = static_cast<int>(ClusterRank());
  RingPosition<kStages> at;
  for (Walk<kGateUp> walk(args, plan); !walk.Done(); walk.Next()) {
    const Work work = walk.Get();
    const CUtensorMap* map = args.weight_maps + work.tile.expert;
    AcquireTensorMap(map);
    const int second = kGateUp ? args.out_features + work.column : work.column + kMoeWeightBoxRows;
    const int in_boxes = (work.tile.rows + kMoeInBoxRows - 1) / kMoeInBoxRows;
    const uint32_t bytes = in_boxes * kInBoxBytes + 2 * kWeightBoxBytes;
    for (int k = 0; k < args.in_features; k += kDepth) {
      BarrierWait(&shared.empty[at.stage], at.parity ^ 1);
      char* const stage = shared.ring + at.stage * kStageBytes;
      uint64_t* const full = &shared.full[at.stage];
      BarrierArriveExpect(full, bytes);
      LoadTile2d(map, stage + kInBytes, full, k, work.column);
      LoadTile2d(map, stage + kInBytes + kWeightBoxBytes, full, k, second);
      if (rank < in_boxes) {
        LoadTileForCluster(in_map, stage + rank * kInBoxBytes, full, k,
                           work.tile.begin + rank * kMoeInBoxRows);
      }
      at.Advance();
    }
  }
}

// This warp has read the stage: tells every CTA of the cluster.
__device__ __forceinline__ void Release(const Shared& shared, int stage) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane < kCluster) BarrierArriveCluster(&shared.empty[stage], lane);
}

// acc[b] = slots 64 (group + 2 b) .. of the tile times the 128 weight rows, for b < kBlocks.
template <int kBlocks>
__device__ __forceinline__ void MultiplyTile(int in_features, int group, const Shared& shared,
                                             RingPosition<kStages>& at, float (&acc)[2][64]) {
  constexpr int kBlockBytes = 64 * kDepth * 2;
  for (int k = 0; k < in_features; k += kDepth) {
    BarrierWait(&shared.full[at.stage], at.parity);
    if constexpr (kBlocks == 0) {
      Release(shared, at.stage);
    } else {
      const uint32_t stage = SharedAddress(shared.ring) + at.stage * kStageBytes;
      const uint64_t a = DescriptorKMajor(stage + group * kBlockBytes);
      const uint64_t b = DescriptorKMajor(stage + kInBytes);
      FenceRegisters(acc[0]);
      if constexpr (kBlocks == 2) FenceRegisters(acc[1]);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kDepth / 16; ++step) {
        const int accumulate = k > 0 || step > 0 ? 1 : 0;
        const uint64_t b_step = AdvanceDescriptor(b, 32 * step);
        WgmmaShared<128, false>::Issue(acc[0], AdvanceDescriptor(a, 32 * step), b_step,
                                       accumulate);
        if constexpr (kBlocks == 2) {
          WgmmaShared<128, false>::Issue(acc[1], AdvanceDescriptor(a, 2 * kBlockBytes + 32 * step),
                                         b_step, accumulate);
        }
      }
      WgmmaCommit();
      FenceRegisters(acc[0]);
      if constexpr (kBlocks == 2) FenceRegisters(acc[1]);
      WgmmaWait<1>();  // the stage before has been read
      if (k > 0) Release(shared, (at.stage + kStages - 1) % kStages);
    }
    at.Advance();
  }
  if constexpr (kBlocks > 0) {
    WgmmaWait<0>();
    FenceRegisters(acc[0]);
    if constexpr (kBlocks == 2) FenceRegisters(acc[1]);
    Release(shared, (at.stage + kStages - 1) % kStages);
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

// One accumulator half (rows + 0 or + 8) to one row of out.
template <bool kGateUp>
__device__ __forceinline__ void StoreRow(const float (&acc)[64], int half, __nv_bfloat16* row,
                                         int column, int end, bool exists) {
  constexpr int kWords = Walk<kGateUp>::kColumns / 8;
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int at = 4 * i + 2 * half;
    if constexpr (kGateUp) {
      words[i] = PackBf16(SwiGluOf(acc[at], acc[at + 32]), SwiGluOf(acc[at + 1], acc[at + 33]));
    } else {
      words[i] = PackBf16(acc[at], acc[at + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < kWords; i += 4) {
    const uint4 piece = TransposeQuad(words[i], words[i + 1], words[i + 2], words[i + 3]);
    const int first = column + 8 * i + 8 * (threadIdx.x & 3);
    if (exists && first < end) *reinterpret_cast<uint4*>(row + first) = piece;
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
    float acc[2][64];
    const auto store = [&](int block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_tile = 64 * (group + 2 * block) + 16 * warp + lane / 4 + 8 * half;
        __nv_bfloat16* row = static_cast<__nv_bfloat16*>(args.out) +
                             int64_t{work.tile.begin + in_tile} * args.out_stride;
        StoreRow<kGateUp>(acc[block], half, row, work.column, end, in_tile < work.tile.rows);
      }
    };
    if (work.tile.rows > 64 * (group + 2)) {
      MultiplyTile<2>(args.in_features, group, shared, at, acc);
      store(0);
      store(1);
    } else if (work.tile.rows > 64 * group) {
      MultiplyTile<1>(args.in_features, group, shared, at, acc);
      store(0);
    } else {
      MultiplyTile<0>(args.in_features, group, shared, at, acc);
    }
  }
}

template <bool kGateUp>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
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
      BarrierInit(&empty[i], kCluster * kConsumerWarps);
    }
    FenceBarrierInit();
  }
  ClusterSync();
  if (threadIdx.x < kWarpgroupThreads) {
    ReduceRegisters<40>();
    if (threadIdx.x == 0) Produce<kGateUp>(args, &in_map, plan, shared);
  } else {
    IncreaseRegisters<232>();
    Consume<kGateUp>(args, plan, shared);
  }
  __syncwarp();
  ClusterSync();  // nobody may go while others still send here
}

// Clusters that fit the GPU at once: a few multiprocessors of a processing cluster may be left over.
template <typename Kernel>
int MaxClusters(Kernel kernel) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
  }
  return std::max(1, clusters);
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
  static const int clusters = MaxClusters(kernel);
  kernel<<<clusters * kCluster, kThreads, kSharedBytes, stream>>>(args, in_map, plan);
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
