// A consumer warpgroup of the prefill kernel: 64 rows (token, head) of the tile against every block
// that one of its tokens wants.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_CONSUMER_INL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_CONSUMER_INL_H_

#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"
#include "engine/kernels/cuda/window_sparse_attention-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_prefill-inl.h"
#include "engine/kernels/cuda/window_sparse_attention_scores-inl.h"

namespace hyserve::kernels::cuda::window_sparse {

template <int kDim, int kVDim, int kStages>
class Consumer {
 public:
  using Shared = PrefillShared<kDim, kVDim, kStages>;

  __device__ __forceinline__ Consumer(const WindowSparseArgs& args, Shared& shared, int consumer)
      : args_(args),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % 4),
        lane_(threadIdx.x % 32),
        group_(args.num_heads / args.num_kv_heads),
        factor_(args.scale * kLog2e) {}

  // The whole warpgroup.
  __device__ __forceinline__ void Run() {
    const int consumer_tokens = ConsumerTokens(group_);
    const uint32_t consumer_mask = (1u << consumer_tokens) - 1;  // at most 16 bits
    int token[2];  // of this thread's two rows, in the tile; 32: no such row
    int head[2];   // in the group
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp_ * 16 + lane_ / 4 + i * 8;
      const int local = row / group_;
      head[i] = row - local * group_;
      token[i] = local < consumer_tokens ? consumer_ * consumer_tokens + local : 32;
    }
    uint32_t q_parity = 0;
    while (true) {
      hopper::BarrierWait(&shared_.full[ring_.stage], ring_.parity);
      StageInfo info = ReadForWarp(shared_.info[ring_.stage]);
      if (info.flags & kEndOfWork) return;
      hopper::BarrierWait(&shared_.q_full, q_parity);
      q_parity ^= 1;
      LoadQueries();
      Release(&shared_.q_empty);
      LoadEnds(info, token, head);
      Reset();
      while (true) {
        if ((info.tokens >> (consumer_ * consumer_tokens)) & consumer_mask) {
          Attend(info, token, SeesAll(info, consumer_tokens));
        }
        Release(&shared_.empty[ring_.stage]);
        ring_.Advance();
        if (info.flags & (kEndOfWindow | kEndOfTile)) {
          Finish(info, token, head);
          if (info.flags & kEndOfTile) break;
          Reset();
        }
        hopper::BarrierWait(&shared_.full[ring_.stage], ring_.parity);
        info = ReadForWarp(shared_.info[ring_.stage]);
      }
    }
  }

 private:
  static constexpr int kSteps = kDim / 16;
  static constexpr uint16_t kInfinityBits = 0x7f80;  // sigmoid 1

  __device__ __forceinline__ void Release(uint64_t* barrier) {
    __syncwarp();
    if (lane_ == 0) hopper::BarrierArrive(barrier);
  }

  __device__ __forceinline__ void Reset() {
#pragma unroll
    for (int i = 0; i < kVDim / 2; ++i) out_[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      max_[i] = -INFINITY;
      sum_[i] = 0.0f;
    }
  }

  __device__ __forceinline__ void LoadQueries() {
    const uint32_t q = hopper::SharedAddress(shared_.q[consumer_]);
    const int row = warp_ * 16 + (lane_ & 15);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int chunk = (step % 4) * 2 + (lane_ >> 4);
      const uint32_t address =
          q + (step / 4) * kSlabBytes + row * 128 + ((chunk ^ (row & 7)) << 4);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                   : "=r"(q_[step][0]), "=r"(q_[step][1]), "=r"(q_[step][2]), "=r"(q_[step][3])
                   : "r"(address)
                   : "memory");
    }
  }

  // True when every token of this consumer sees the whole block; the same for all its threads.
  __device__ __forceinline__ bool SeesAll(const StageInfo& info, int consumer_tokens) const {
    const int begin = consumer_ * consumer_tokens;
    const uint32_t all = ((1u << consumer_tokens) - 1) << begin;
    const int first = info.tile_position + begin;
    const int last = first + consumer_tokens - 1;
    return (info.tokens & all) == all && first >= info.first_position + kSparseBlock - 1 &&
           (!(info.flags & kWindowStage) || last - args_.window < info.first_position);
  }

  // One block.
  __device__ __forceinline__ void Attend(const StageInfo& info, const int (&token)[2],
                                         bool sees_all) {
    auto& stage = shared_.stages[ring_.stage];
    float s[32];
    // What a row does not see starts at -infinity and stays there.
    if (!sees_all) {
      int lo[2], hi[2];  // slots that this thread's rows see
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool wants = token[half] < 32 && ((info.tokens >> token[half]) & 1) != 0;
        const int last = info.tile_position + token[half] - info.first_position;
        lo[half] = info.flags & kWindowStage ? last - args_.window + 1 : 0;
        hi[half] = wants ? last + 1 : 0;
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int slot = (i / 4) * 8 + (lane_ & 3) * 2 + (i & 1);
        const int half = (i >> 1) & 1;
        s[i] = slot >= lo[half] && slot < hi[half] ? 0.0f : -INFINITY;
      }
    }
    const uint64_t k = hopper::DescriptorKMajor(hopper::SharedAddress(stage.k));
    hopper::FenceRegisters(s);
    hopper::FenceRegisters(q_);
    hopper::WgmmaFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      hopper::WgmmaRegister<64, false>::Issue(
          s, q_[step], hopper::AdvanceDescriptor(k, (step / 4) * kSlabBytes + (step % 4) * 32),
          step > 0 ? 1 : (sees_all ? 0 : 1));
    }
    hopper::WgmmaCommit();
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(s);

    float scale[2];
    Softmax(s, scale);
    if (__any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kVDim / 2; ++i) out_[i] *= scale[(i >> 1) & 1];
    }
    uint32_t p[4][4];
    PackProbabilities(s, p);
    const uint64_t v = hopper::DescriptorMnMajor(hopper::SharedAddress(stage.v), kSlabBytes);
    hopper::FenceRegisters(p);
    hopper::FenceRegisters(out_);
    hopper::WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      hopper::WgmmaRegister<kVDim, true>::Issue(out_, p[step],
                                                hopper::AdvanceDescriptor(v, step * 2048), 1);
    }
    hopper::WgmmaCommit();
    hopper::WgmmaWait<0>();
    hopper::FenceRegisters(out_);
  }

  // Logits to probabilities against the new running maximum; scale: what the old ones must be
  // multiplied with.
  __device__ __forceinline__ void Softmax(float (&s)[32], float (&scale)[2]) {
    float offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float max = fmaxf(max_[half], RowMax(s, half) * factor_);
      offset[half] = max == -INFINITY ? 0.0f : max;
      scale[half] = hopper::Exp2(max_[half] - offset[half]);
      max_[half] = max;
      sum_[half] *= scale[half];
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = (i >> 1) & 1;
      s[i] = hopper::Exp2(fmaf(s[i], factor_, -offset[half]));
      sum_[half] += s[i];
    }
  }

  __device__ __forceinline__ int64_t Row(const StageInfo& info, int token) const {
    return info.tile_row + (token < info.tile_tokens ? token : 0);
  }
  __device__ __forceinline__ uint32_t* Out(const StageInfo& info, int token, int head) const {
    return reinterpret_cast<uint32_t*>(args_.out + Row(info, token) * args_.out_stride +
                                       int64_t{info.kv_head * group_ + head} * kVDim +
                                       (lane_ & 3) * 2);
  }

  // What the ends of the branches need of memory, long before them: sinks and gates per head (bits
  // of bf16), as they are, so that nothing waits for them here.
  __device__ __forceinline__ void LoadEnds(const StageInfo& info, const int (&token)[2],
                                           const int (&head)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int h = info.kv_head * group_ + head[half];
#pragma unroll
      for (int branch = 0; branch < 2; ++branch) {
        const float* sink = branch == 0 ? args_.window_sink : args_.sparse_sink;
        const SparseGate& gate = branch == 0 ? args_.window_gate : args_.sparse_gate;
        sink_[branch][half] = sink == nullptr ? -INFINITY : sink[h];
        gate_[branch][half] = gate.data == nullptr || gate.per_element
                                  ? kInfinityBits
                                  : gate.data[Row(info, token[half]) * gate.stride + h];
      }
    }
  }

  // The end of a branch: normalises, gates and writes; the sparse branch comes second and adds to
  // what was written for the window.
  __device__ __forceinline__ void Finish(const StageInfo& info, const int (&token)[2],
                                         const int (&head)[2]) {
    const bool window = (info.flags & kWindowStage) != 0;
    uint32_t first[2][kVDim / 8];  // what this thread wrote for the window
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool wanted = !window && token[half] < info.tile_tokens;
      const uint32_t* out = Out(info, token[half], head[half]);
#pragma unroll
      for (int i = 0; i < kVDim / 8; ++i) first[half][i] = wanted ? out[4 * i] : 0;
    }
    const SparseGate gate = window ? args_.window_gate : args_.sparse_gate;
    if (gate.data != nullptr && gate.per_element) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint16_t* gates = gate.data + Row(info, token[half]) * gate.stride +
                                int64_t{info.kv_head * group_ + head[half]} * kVDim +
                                (lane_ & 3) * 2;
#pragma unroll
        for (int i = 0; i < kVDim / 8; ++i) {
          out_[4 * i + 2 * half] *= Sigmoid(Bf16(gates[8 * i]));
          out_[4 * i + 2 * half + 1] *= Sigmoid(Bf16(gates[8 * i + 1]));
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float sink = (window ? sink_[0][half] : sink_[1][half]) * kLog2e;
      const float factor = SoftmaxFactor(max_[half], sum, sink) *
                           Sigmoid(Bf16(window ? gate_[0][half] : gate_[1][half]));
      if (token[half] >= info.tile_tokens) continue;
      uint32_t* out = Out(info, token[half], head[half]);
#pragma unroll
      for (int i = 0; i < kVDim / 8; ++i) {
        const uint32_t before = first[half][i];
        out[4 * i] = PackBf16(
            fmaf(out_[4 * i + 2 * half], factor, Bf16(static_cast<uint16_t>(before))),
            fmaf(out_[4 * i + 2 * half + 1], factor, Bf16(static_cast<uint16_t>(before >> 16))));
      }
    }
  }

  const WindowSparseArgs& args_;
  Shared& shared_;
  const int consumer_;
  const int warp_;
  const int lane_;
  const int group_;
  const float factor_;
  hopper::RingPosition<kStages> ring_;
  uint32_t q_[kSteps][4];
  float out_[kVDim / 2];
  float sink_[2][2];  // window, sparse; by row
  uint16_t gate_[2][2];
  float max_[2];
  float sum_[2];
};

}  // namespace hyserve::kernels::cuda::window_sparse

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_CONSUMER_INL_H_
