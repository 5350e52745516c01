// The producer warp of the prefill kernel: starts the copies that the planner asks for.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_

#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/window_sparse_attention-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_prefill-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

template <int kDim, int kVDim, int kStages, int kBlocks>
class Producer {
 public:
  using Shared = PrefillShared<kDim, kVDim, kStages>;

  __device__ Producer(const WindowSparseArgs& args, const PrefillMaps& maps, Shared& shared)
      : args_(args),
        maps_(maps),
        shared_(shared),
        lane_(threadIdx.x % 32),
        rank_(kBlocks == 1 ? 0 : static_cast<int>(blockIdx.x) % kBlocks) {}

  // The whole warp.
  __device__ void Run() {
    hopper::RingPosition<kPlanDepth> plan;
    uint32_t q_parity = 1;
    while (true) {
      hopper::BarrierWait(&shared_.plan_full[plan.stage], plan.parity);
      const PlannedBlock block = shared_.plan[plan.stage];
      __syncwarp();
      if (lane_ == 0) hopper::BarrierArrive(&shared_.plan_empty[plan.stage]);
      plan.Advance();
      const bool end = block.info.flags == kEndOfWork;
      if (block.starts_tile && !end) {
        hopper::BarrierWait(&shared_.q_empty, q_parity);
        q_parity ^= 1;
        CopyQueries(block.info);
      }
      hopper::BarrierWait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
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
  static constexpr int kSlabs = Shared::kKeySlabs + Shared::kValueSlabs;
  static constexpr int kStageBytes = kSlabs * kSlabBytes;

  // Lane i of the first few copies the i-th 64 columns of this block's consumers' queries.
  __device__ void CopyQueries(const StageInfo& info) {
    const int group = args_.num_heads / args_.num_kv_heads;
    const int tokens = ConsumerTokens(group);
    if (lane_ == 0) {
      hopper::BarrierArriveExpect(&shared_.q_full,
                                  kConsumers * Shared::kKeySlabs * tokens * group * 128);
    }
    if (lane_ < kConsumers * Shared::kKeySlabs) {
      const int consumer = lane_ / Shared::kKeySlabs;
      const int slab = lane_ % Shared::kKeySlabs;
      hopper::LoadTile3d(&maps_.q, shared_.q[consumer][slab], &shared_.q_full, slab * 64,
                         info.kv_head * group,
                         info.tile_row + (rank_ * kConsumers + consumer) * tokens,
                         hopper::kEvictFirst);
    }
  }

  __device__ void Copy(const PlannedBlock& block) {
    uint64_t* full = &shared_.full[ring_.stage];
    const int kv_head = block.info.kv_head;
    if (block.source == BlockSource::kStep || block.source == BlockSource::kPage) {
      // Lane i copies the i-th 64 columns: those of K come first.
      if (lane_ == 0) hopper::BarrierArriveExpect(full, kStageBytes);
      if (lane_ >= kSlabs) return;
      const bool is_key = lane_ < Shared::kKeySlabs;
      const int col = (is_key ? lane_ : lane_ - Shared::kKeySlabs) * 64;
      unsigned char* to = shared_.stages[ring_.stage].k[0] + lane_ * kSlabBytes;
      if (block.source == BlockSource::kStep) {
        hopper::LoadTile2d(is_key ? &maps_.step_k : &maps_.step_v, to, full,
                           kv_head * (is_key ? kDim : kVDim) + col, block.index);
        return;
      }
      const CUtensorMap* map = is_key ? &maps_.page_k : &maps_.page_v;
      if constexpr (kBlocks == 1) {
        hopper::LoadTile4d(map, to, full, col, 0, kv_head, block.index);
      } else {
        // The blocks of a cluster load a part of the keys each, for all of them.
        constexpr int kKeys = kSparseBlock / kBlocks;
        hopper::LoadTile4dMulticast(map, to + rank_ * kKeys * 128, full, col, rank_ * kKeys,
                                    kv_head, block.index, (1 << kBlocks) - 1);
      }
      return;
    }
    CopyByHand([&](int slot) -> KeyRows {
      if (slot < block.lo || slot >= block.hi) return {nullptr, nullptr};
      if (block.source == BlockSource::kPartOfPage) {
        return PageKey(args_, block.index, kv_head, slot);
      }
      return WindowKey(args_, block.seq, kv_head, block.info.first_position + slot);
    });
  }

  // Fills the stage with ordinary copies, zeros where there is no key; the layout of the copy engine.
  template <typename FindKey>
  __device__ void CopyByHand(const FindKey& find) {
    auto& stage = shared_.stages[ring_.stage];
    const KeyRows low = find(lane_);
    const KeyRows high = find(lane_ + 32);
    CopyMatrix<kDim>(hopper::SharedAddress(stage.k), low.k, high.k);
    CopyMatrix<kVDim>(hopper::SharedAddress(stage.v), low.v, high.v);
    asm volatile("cp.async.wait_all;\n" ::: "memory");
    hopper::FenceSharedForAsync();
    __syncwarp();
    if (lane_ == 0) hopper::BarrierArrive(&shared_.full[ring_.stage]);
  }

  // low, high: this lane's rows `lane` and `lane + 32`.
  template <int kCols>
  __device__ void CopyMatrix(uint32_t to, const uint16_t* low, const uint16_t* high) {
    constexpr int kChunks = kCols / 8;
#pragma unroll 1
    for (int row = 0; row < kSparseBlock; ++row) {
      const uint16_t* mine = row < 32 ? low : high;
      const uint16_t* from = reinterpret_cast<const uint16_t*>(
          __shfl_sync(~0u, reinterpret_cast<unsigned long long>(mine), row % 32));
      if (lane_ < kChunks) {
        const uint32_t address = to + (lane_ / 8) * kSlabBytes + row * 128 +
                                 (((lane_ % 8) ^ (row & 7)) << 4);
        const void* source = from == nullptr ? nullptr : from + lane_ * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(source),
                     "r"(from == nullptr ? 0 : 16)
                     : "memory");
      }
    }
  }

  const WindowSparseArgs& args_;
  const PrefillMaps& maps_;
  Shared& shared_;
  const int lane_;
  const int rank_;  // of this block in the cluster
  hopper::RingPosition<kStages> ring_;
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_PRODUCER_INL_H_
