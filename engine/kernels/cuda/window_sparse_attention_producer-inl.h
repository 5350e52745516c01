// The producer warp of the prefill kernel: starts the copies that the planner asks for, all from
// one lane (lanes with different operands would have to take turns).
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_

#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/window_sparse_attention_copy-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_prefill-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

template <int kDim, int kVDim, int kStages>
class Producer {
 public:
  using Shared = PrefillShared<kDim, kVDim, kStages>;

  __device__ Producer(const WindowSparseArgs& args, const PrefillMaps& maps, Shared& shared)
      : args_(args),
        maps_(maps),
        shared_(shared),
        lane_(threadIdx.x % 32) {}

  // The whole warp.
  __device__ void Run() {
    hopper::RingPosition<kPlanDepth> plan;
    uint32_t q_parity = 1;
    while (true) {
      hopper::BarrierWait(&shared_.plan_full[plan.stage], plan.parity);
      const PlannedBlock block = ReadForWarp(shared_.plan[plan.stage]);
      __syncwarp();
      if (lane_ == 0) hopper::BarrierArrive(&shared_.plan_empty[plan.stage]);
      plan.Advance();
      const bool end = block.info.flags == kEndOfWork;
      if (block.starts_tile && !end) {
        hopper::BarrierWait(&shared_.q_empty, q_parity);
        q_parity ^= 1;
        CopyQueries(block.info);
      }
      hopper::BarrierWaitIdle(&shared_.empty[ring_.stage], ring_.parity ^ 1);
      if (lane_ == 0) shared_.info[ring_.stage] = block.info;
      if (end) {
        if (lane_ == 0) hopper::BarrierArrive(&shared_.full[ring_.stage]);
        return;
      }
      Copy(block);
      __syncwarp();
      ring_.Advance();
    }
  }

 private:
  static constexpr int kStageBytes = (Shared::kKeySlabs + Shared::kValueSlabs) * kSlabBytes;

  // The queries of this block's consumers.
  __device__ void CopyQueries(const StageInfo& info) {
    if (lane_ != 0) return;
    const int group = args_.num_heads / args_.num_kv_heads;
    const int tokens = ConsumerTokens(group);
    hopper::BarrierArriveExpect(&shared_.q_full,
                                kConsumers * Shared::kKeySlabs * tokens * group * 128);
#pragma unroll
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
#pragma unroll
      for (int slab = 0; slab < Shared::kKeySlabs; ++slab) {
        hopper::LoadTile3d(&maps_.q, shared_.q[consumer][slab], &shared_.q_full, slab * 64,
                           info.kv_head * group, info.tile_row + consumer * tokens,
                           hopper::kEvictFirst);
      }
    }
  }

  __device__ void Copy(const PlannedBlock& block) {
    const int kv_head = block.info.kv_head;
    auto& stage = shared_.stages[ring_.stage];
    uint64_t* full = &shared_.full[ring_.stage];
    if (block.source == BlockSource::kStep) {
      if (lane_ != 0) return;
      hopper::BarrierArriveExpect(full, kStageBytes);
#pragma unroll
      for (int i = 0; i < Shared::kKeySlabs; ++i) {
        hopper::LoadTile2d(&maps_.step_k, stage.k[i], full, kv_head * kDim + i * 64, block.index);
      }
#pragma unroll
      for (int i = 0; i < Shared::kValueSlabs; ++i) {
        hopper::LoadTile2d(&maps_.step_v, stage.v[i], full, kv_head * kVDim + i * 64,
                           block.index);
      }
      return;
    }
    if (block.source == BlockSource::kPage) {
      if (lane_ != 0) return;
      hopper::BarrierArriveExpect(full, kStageBytes);
      StartPageCopy<kDim, kVDim>(maps_.page_k, maps_.page_v, stage.k, stage.v, full, kv_head,
                                 block.index);
      return;
    }
    CopyBlockByHand<kDim, kVDim>(stage.k, stage.v, full, [&](int slot) -> KeyRows {
      if (slot < block.lo || slot >= block.hi) return {nullptr, nullptr};
      if (block.source == BlockSource::kPartOfPage) {
        return PageKey(args_, block.index, kv_head, slot);
      }
      return WindowKey(args_, block.seq, kv_head, block.info.first_position + slot);
    });
  }

  const WindowSparseArgs& args_;
  const PrefillMaps& maps_;
  Shared& shared_;
  const int lane_;
  hopper::RingPosition<kStages> ring_;
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_
