// A warpgroup of the prefill kernel that computes 64 rows of a tile. Device code.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_CONSUMER_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_CONSUMER_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/cuda/full_attention_prefill_device.h"

namespace hyserve::kernels::cuda::prefill {

using hopper::RingPosition;

// Named barriers: 1, 2 the turns of the two warpgroups; 3, 4 inside one warpgroup.
inline constexpr int kTurnBarrier = 1;
inline constexpr int kInnerBarrier = 3;

// One consumer warpgroup. group: 0 or 1.
template <typename T, bool kWriteScores>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const PrefillLaunch& launch, const Buffers<T>& buffers,
                                      int group)
      : launch_(launch), buffers_(buffers), shared_(*buffers.shared), group_(group) {
    const uint32_t base = buffers.address;
    q_address_ = base + group * 64 * 128;
    q_descriptor_ = hopper::DescriptorKMajor(q_address_);
    k_descriptor_ = hopper::DescriptorKMajor(base + Buffers<T>::kKOffset);
    v_descriptor_ = hopper::DescriptorMnMajor(base + Buffers<T>::kVOffset, T::kSlabBytes);
    const uint32_t barriers = base + Buffers<T>::kBarrierOffset;
    k_full_ = barriers + offsetof(Shared<T::kStages>, k_full);
    k_empty_ = barriers + offsetof(Shared<T::kStages>, k_empty);
    v_full_ = barriers + offsetof(Shared<T::kStages>, v_full);
    v_empty_ = barriers + offsetof(Shared<T::kStages>, v_empty);
    scale_log2_ = launch.scale * kLog2E;
  }

  __device__ __forceinline__ void Run() {
    if (T::kSchedule != Schedule::kFree && group_ == 1) {
      hopper::NamedBarrierArrive(kTurnBarrier, kConsumerThreads);
    }
    uint32_t q_parity = 0;
    while (true) {
      hopper::BarrierWait(&shared_.q_full, q_parity);
      q_parity ^= 1;
      // Read by the lane that releases the queries later.
      int id = 0;
      if (threadIdx.x % 32 == 0) id = shared_.tile;
      id = __shfl_sync(0xffffffffu, id, 0);
      if (id < 0) return;
      Attend(FindTile(launch_, id));
    }
  }

 private:
  __device__ __forceinline__ void WaitTurn() {
    if constexpr (T::kSchedule != Schedule::kFree) {
      hopper::NamedBarrierSync(kTurnBarrier + group_, kConsumerThreads);
    }
  }
  __device__ __forceinline__ void PassTurn() {
    if constexpr (T::kSchedule != Schedule::kFree) {
      hopper::NamedBarrierArrive(kTurnBarrier + (group_ ^ 1), kConsumerThreads);
    }
  }
  // Tells a producer that this warp has read a buffer.
  __device__ __forceinline__ void Release(uint32_t barrier) {
    if (threadIdx.x % 32 == 0) hopper::BarrierArrive(barrier);
  }
  __device__ __forceinline__ uint64_t KeyDescriptor(int stage) const {
    return AdvanceDescriptor(k_descriptor_, stage * T::kKBytes);
  }
  __device__ __forceinline__ uint64_t ValueDescriptor(int stage) const {
    return AdvanceDescriptor(v_descriptor_, stage * T::kVBytes);
  }
  // Waits for the values of tile j and clears what lies past the last key.
  __device__ __forceinline__ void WaitValues(const RingPosition<T::kStages>& at, int j,
                                             int num_keys) {
    hopper::BarrierWait(v_full_ + 8 * at.stage, at.parity);
    if ((j + 1) * T::kTileKeys > num_keys) {
      ClearValueRows<T>(buffers_.v + at.stage * T::kVBytes, num_keys - j * T::kTileKeys,
                        kInnerBarrier + group_);
    }
  }

  __device__ __forceinline__ void Attend(const Tile& tile) {
    const PrefillSegment& segment = launch_.segments[tile.segment];
    const int num_keys = NumKeys(segment, tile.row_tile);
    const int num_tiles = (num_keys + T::kTileKeys - 1) / T::kTileKeys;
    const int group_row = tile.row_tile * kPrefillTileRows + group_ * 64;
    const int row = group_row + (threadIdx.x % 128) / 32 * 16 + threadIdx.x % 32 / 4;
    const int position = segment.first_position + row;
    const int first_masked = (segment.first_position + group_row + 1) / T::kTileKeys;
    float* block_scores = nullptr;
    constexpr int kScoreStep = kWriteScores ? T::kPagesPerTile * kPrefillTileRows : 0;
    if constexpr (kWriteScores) {
      const int64_t planes = tile.head * PrefillPlanesBefore(segment, segment.num_row_tiles) +
                             PrefillPlanesBefore(segment, tile.row_tile);
      block_scores = ScorePointer<T::kPagesPerTile>(
          launch_.raw_scores + segment.score_offset + planes * kPrefillTileRows,
          row % kPrefillTileRows);
    }

    RowState state{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    float scores[T::kScoreRegisters];
    float out[T::kOutRegisters];
    uint32_t probabilities[T::kKeySteps][4];
    float alpha[2], shift[2], tile_max[2];

#pragma unroll
    for (int i = 0; i < T::kOutRegisters; ++i) out[i] = 0.0f;
    Queries<T> queries;
    queries.Load(q_address_);
    // Tile 0, then every tile's scores beside the previous tile's P V.
    hopper::BarrierWait(k_full_ + 8 * ring_.stage, ring_.parity);
    hopper::WgmmaFence();
    IssueScores<T>(scores, queries, q_descriptor_, KeyDescriptor(ring_.stage));
    hopper::WgmmaCommit();
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(scores);
    Release(k_empty_ + 8 * ring_.stage);
    if (first_masked <= 0) MaskScores(scores, 0, position);
    float block_max[T::kPagesPerTile][2];
    TileMax(scores, block_max, tile_max);
    UpdateMax(tile_max, scale_log2_, state, alpha, shift);
    Exponentiate<0, T::kScoreRegisters>(scores, scale_log2_, shift, state);
    if constexpr (kWriteScores) StoreBlockMax(block_max, block_scores);
    PackProbabilities<0, T::kKeySteps>(scores, probabilities);
#pragma unroll 1
    for (int j = 1; j < num_tiles; ++j) {
      const RingPosition<T::kStages> previous = ring_;
      ring_.Advance();
      block_scores += kScoreStep;
      if (j == 1) hopper::BarrierWait(k_full_ + 8 * ring_.stage, ring_.parity);
      WaitTurn();
      hopper::FenceRegisters(scores);
      hopper::FenceRegisters(probabilities);
      hopper::FenceRegisters(out);
      hopper::WgmmaFence();
      IssueScores<T>(scores, queries, q_descriptor_, KeyDescriptor(ring_.stage));
      hopper::WgmmaCommit();
      // Never the last tile, so no key of it is past the end.
      hopper::BarrierWait(v_full_ + 8 * previous.stage, previous.parity);
      hopper::WgmmaFence();
      IssueOut<T>(out, probabilities, ValueDescriptor(previous.stage));
      hopper::WgmmaCommit();
      PassTurn();
      hopper::WgmmaWait<1>();
      hopper::FenceRegisters(scores);
      Release(k_empty_ + 8 * ring_.stage);
      if (j >= first_masked) MaskScores(scores, j * T::kTileKeys, position);
      TileMax(scores, block_max, tile_max);
      UpdateMax(tile_max, scale_log2_, state, alpha, shift);
      // P V of the previous tile ends about when half of the exponentials are done; from then on
      // its operands may be overwritten. The branch (sums are never negative) keeps the assembler
      // from moving the first half behind the wait.
      Exponentiate<0, T::kScoreRegisters / 2>(scores, scale_log2_, shift, state);
      hopper::FenceRegisters(scores);
      if (state.sum[0] + state.sum[1] < 0.0f) __trap();
      hopper::WgmmaWait<0>();
      hopper::FenceRegisters(out);
      hopper::FenceRegisters(probabilities);
      Release(v_empty_ + 8 * previous.stage);
      RingPosition<T::kStages> next = ring_;
      next.Advance();
      const bool next_keys =
          j + 1 == num_tiles || hopper::BarrierTryWait(k_full_ + 8 * next.stage, next.parity);
      PackProbabilities<0, T::kKeySteps / 2>(scores, probabilities);
      Exponentiate<T::kScoreRegisters / 2, T::kScoreRegisters>(scores, scale_log2_, shift, state);
      if constexpr (kWriteScores) StoreBlockMax(block_max, block_scores);
      PackProbabilities<T::kKeySteps / 2, T::kKeySteps>(scores, probabilities);
      RescaleOut(out, alpha);
      if (!next_keys) hopper::BarrierWait(k_full_ + 8 * next.stage, next.parity);
    }
    Release(hopper::SharedAddress(&shared_.q_empty));
    WaitValues(ring_, num_tiles - 1, num_keys);
    hopper::FenceRegisters(probabilities);
    hopper::FenceRegisters(out);
    hopper::WgmmaFence();
    IssueOut<T>(out, probabilities, ValueDescriptor(ring_.stage));
    hopper::WgmmaCommit();
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(out);
    Release(v_empty_ + 8 * ring_.stage);
    ring_.Advance();
    Finish(segment, tile, row, state, out);
  }

  __device__ __forceinline__ void Finish(const PrefillSegment& segment, const Tile& tile, int row,
                                         const RowState& state,
                                         const float (&out)[T::kOutRegisters]) {
    float inverse[2];
    bool valid[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[r] = 1.0f / sum;
      valid[r] = row + 8 * r < segment.num_rows;
      if constexpr (kWriteScores) {
        if (threadIdx.x % 4 == 0) {
          const int64_t padded_rows = int64_t{segment.num_row_tiles} * kPrefillTileRows;
          launch_.lse[segment.lse_offset + tile.head * padded_rows + row + 8 * r] =
              fmaf(state.max[r], launch_.scale, logf(sum));
        }
      }
    }
    uint16_t* destination =
        static_cast<uint16_t*>(launch_.out) +
        static_cast<int64_t>(segment.first_row + row) * launch_.out_row_stride +
        tile.head * T::kValueDim;
    StoreOut(out, inverse, destination, launch_.out_row_stride, valid);
  }

  const PrefillLaunch& launch_;
  const Buffers<T>& buffers_;
  Shared<T::kStages>& shared_;
  const int group_;
  uint32_t q_address_;
  uint32_t k_full_;  // barriers of stage 0, 8 bytes apart
  uint32_t k_empty_;
  uint32_t v_full_;
  uint32_t v_empty_;
  uint64_t q_descriptor_;
  uint64_t k_descriptor_;
  uint64_t v_descriptor_;
  float scale_log2_;
  RingPosition<T::kStages> ring_;
};

}  // namespace hyserve::kernels::cuda::prefill

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_CONSUMER_H_
