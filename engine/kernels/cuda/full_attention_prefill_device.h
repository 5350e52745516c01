// Device code of the prefill kernel: its shapes and shared memory, which tile is which, and the
// softmax over score fragments.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_DEVICE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_DEVICE_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/cuda/full_attention_prefill_kernel.h"
#include "engine/kernels/cuda/hopper/mbarrier.h"
#include "engine/kernels/cuda/hopper/tma.h"
#include "engine/kernels/cuda/hopper/warpgroup.h"
#include "engine/kernels/cuda/hopper/wgmma.h"

namespace hyserve::kernels::cuda::prefill {

using hopper::AdvanceDescriptor;

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// How the two consumer warpgroups share the tensor cores.
enum class Schedule {
  kFree,
  kPingPong,  // they issue their products in turns
};

// kQuerySlabs: groups of 64 query columns that stay in registers; the others are read from shared
// memory by every product, whose bandwidth is what limits the products.
template <int kHeadDim_, int kValueDim_, int kTileKeys_, int kStages_, Schedule kSchedule_,
          int kQuerySlabs_ = 0>
struct Traits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kValueDim = kValueDim_;
  static constexpr int kTileKeys = kTileKeys_;
  static constexpr int kStages = kStages_;
  static constexpr Schedule kSchedule = kSchedule_;
  static constexpr int kQuerySlabs = kQuerySlabs_;
  static constexpr int kQuerySteps = kQuerySlabs * 4;  // of 16 columns
  static constexpr int kTileRows = kPrefillTileRows;
  static constexpr int kPagesPerTile = kTileKeys / kPrefillBlockTokens;
  static constexpr int kSlabBytes = kTileKeys * 128;  // 64 columns of a K or V tile
  static constexpr int kQBytes = kTileRows * kHeadDim * 2;
  static constexpr int kKBytes = kTileKeys * kHeadDim * 2;
  static constexpr int kVBytes = kTileKeys * kValueDim * 2;
  static constexpr int kSharedBytes = 1024 + kQBytes + kStages * (kKBytes + kVBytes) + 1024;
  static constexpr int kScoreRegisters = kTileKeys / 2;
  static constexpr int kOutRegisters = kValueDim / 2;
  static constexpr int kKeySteps = kTileKeys / 16;
};

// Barriers and the tile that the producer announces; lies in front of the operand buffers.
template <int kStages>
struct Shared {
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t k_full[kStages];
  uint64_t k_empty[kStages];
  uint64_t v_full[kStages];
  uint64_t v_empty[kStages];
  int32_t tile;  // valid from q_full to q_empty; -1: no more
  int32_t value_tile;  // the same for the warp that loads values, from tile_full to tile_empty
  uint64_t tile_full;
  uint64_t tile_empty;
};

// The block's shared memory: operands from a multiple of 1,024 bytes on, then the barriers.
// Pointers for what few instructions use, the address for the inner loop.
template <typename T>
struct Buffers {
  static constexpr int kKOffset = T::kQBytes;
  static constexpr int kVOffset = kKOffset + T::kStages * T::kKBytes;
  static constexpr int kBarrierOffset = kVOffset + T::kStages * T::kVBytes;
  uint8_t* q;
  uint8_t* k;
  uint8_t* v;
  Shared<T::kStages>* shared;
  uint32_t address;  // of q

  __device__ __forceinline__ explicit Buffers(uint8_t* raw) {
    q = raw + (1024 - hopper::SharedAddress(raw) % 1024) % 1024;
    k = q + kKOffset;
    v = q + kVOffset;
    shared = reinterpret_cast<Shared<T::kStages>*>(q + kBarrierOffset);
    // Opaque, so that it stays in a register and is not computed anew wherever it is used.
    asm volatile("mov.u32 %0, %1;" : "=r"(address) : "r"(hopper::SharedAddress(q)));
  }
};

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumerThreads = 32 * kConsumerWarps;

struct Tile {
  int segment;
  int head;
  int row_tile;
};

__device__ __forceinline__ Tile FindTile(const PrefillLaunch& launch, int id) {
  int s = 0;
  while (s + 1 < launch.num_segments && id >= launch.segments[s + 1].tile_begin) ++s;
  const PrefillSegment& segment = launch.segments[s];
  const int local = id - segment.tile_begin;
  const int section_tiles = segment.section_heads * segment.num_row_tiles;
  const int section = local / section_tiles;
  const int rest = local - section * section_tiles;
  const int from_end = rest / segment.section_heads;
  // The row tiles with the most keys come first.
  return {s, section * segment.section_heads + rest - from_end * segment.section_heads,
          segment.num_row_tiles - 1 - from_end};
}

// Keys that some row of the tile sees.
__device__ __forceinline__ int NumKeys(const PrefillSegment& segment, int row_tile) {
  const int last_row = min(segment.num_rows, (row_tile + 1) * kPrefillTileRows) - 1;
  return segment.first_position + last_row + 1;
}

// The running state of the two rows (r and r + 8) that a thread shares with its quad.
struct RowState {
  float max[2];  // of the raw scores so far
  float sum[2];  // this thread's part of sum exp2(c (s - max))
};

template <int kRegisters>
__device__ __forceinline__ void MaskScores(float (&scores)[kRegisters], int first_key,
                                           int position) {
  const int quad_column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    const int column = 8 * (i / 4) + i % 2;
    const int limit = position + (i % 4 >= 2 ? 8 : 0) - first_key - quad_column;
    if (column > limit) scores[i] = -INFINITY;
  }
}

__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Largest score of the two rows within one block of 64 keys, over this thread's columns.
template <int kBegin, int kRegisters>
__device__ __forceinline__ void ThreadBlockMax(const float (&scores)[kRegisters], float (&max)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float a = fmaxf(scores[kBegin + 2 * r], scores[kBegin + 2 * r + 1]);
    float b = fmaxf(scores[kBegin + 4 + 2 * r], scores[kBegin + 4 + 2 * r + 1]);
#pragma unroll
    for (int i = 8; i < 32; i += 8) {
      a = fmaxf(a, scores[kBegin + i + 2 * r]);
      b = fmaxf(b, scores[kBegin + i + 4 + 2 * r]);
      a = fmaxf(a, scores[kBegin + i + 2 * r + 1]);
      b = fmaxf(b, scores[kBegin + i + 4 + 2 * r + 1]);
    }
    max[r] = fmaxf(a, b);
  }
}

// Maxima of the tile's rows (over the quad), and of every block of 64 keys (over this thread's
// columns).
template <int kRegisters, int kBlocks>
__device__ __forceinline__ void TileMax(const float (&scores)[kRegisters],
                                        float (&block_max)[kBlocks][2], float (&tile_max)[2]) {
  static_assert(kRegisters == 32 * kBlocks && (kBlocks == 1 || kBlocks == 2));
  ThreadBlockMax<0>(scores, block_max[0]);
  if constexpr (kBlocks == 2) ThreadBlockMax<32>(scores, block_max[1]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    tile_max[r] = QuadMax(kBlocks == 2 ? fmaxf(block_max[0][r], block_max[1][r]) : block_max[0][r]);
    // With one block that is what will be stored.
    if constexpr (kBlocks == 1) block_max[0][r] = tile_max[r];
  }
}

// Stores the maximum of every block of 64 keys; block_scores: see ScorePointer.
template <int kBlocks>
__device__ __forceinline__ void StoreBlockMax(const float (&block_max)[kBlocks][2],
                                              float* block_scores) {
  const int lane = threadIdx.x % 4;
  if constexpr (kBlocks == 1) {
    if (lane % 2 == 0) *block_scores = lane == 0 ? block_max[0][0] : block_max[0][1];
  } else {
    // Over the quad, each lane ending with the maximum that it stores: first the other block's goes
    // to the neighbour, then the other row's to the lane two further on.
    const bool odd = lane % 2 == 1;
    float kept[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sent = odd ? block_max[0][r] : block_max[1][r];
      kept[r] = fmaxf(odd ? block_max[1][r] : block_max[0][r],
                      __shfl_xor_sync(0xffffffffu, sent, 1));
    }
    const float got = __shfl_xor_sync(0xffffffffu, lane < 2 ? kept[1] : kept[0], 2);
    *block_scores = fmaxf(lane < 2 ? kept[0] : kept[1], got);
  }
}

// Where this thread stores block maxima: lanes 0, 1 of a quad hold row r, lanes 2, 3 row r + 8;
// with two blocks to a tile the odd lanes hold the second block.
template <int kPagesPerTile>
__device__ __forceinline__ float* ScorePointer(float* tile_planes, int row_in_tile) {
  const int lane = threadIdx.x % 4;
  float* pointer = tile_planes + row_in_tile + (lane >= 2 ? 8 : 0);
  if constexpr (kPagesPerTile == 2) {
    if (lane % 2 == 1) pointer += kPrefillTileRows;
  }
  return pointer;
}

// Takes in the maxima of a tile: alpha is what earlier sums and outputs must be multiplied by (the
// sums are), shift what is subtracted from c score.
__device__ __forceinline__ void UpdateMax(const float (&tile_max)[2], float c, RowState& state,
                                          float (&alpha)[2], float (&shift)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float max = fmaxf(state.max[r], tile_max[r]);
    alpha[r] = hopper::Exp2((state.max[r] - max) * c);
    shift[r] = max * c;
    state.max[r] = max;
    state.sum[r] *= alpha[r];
  }
}

// scores [kBegin, kEnd) -> exp2(c score - shift), added to the sums.
template <int kBegin, int kEnd, int kRegisters>
__device__ __forceinline__ void Exponentiate(float (&scores)[kRegisters], float c,
                                             const float (&shift)[2], RowState& state) {
#pragma unroll
  for (int i = kBegin; i < kEnd; ++i) {
    const int r = i % 4 >= 2;
    scores[i] = hopper::Exp2(fmaf(scores[i], c, -shift[r]));
    state.sum[r] += scores[i];
  }
}

// Steps [kBegin, kEnd) of 16 keys.
template <int kBegin, int kEnd, int kRegisters, int kSteps>
__device__ __forceinline__ void PackProbabilities(const float (&scores)[kRegisters],
                                                  uint32_t (&packed)[kSteps][4]) {
#pragma unroll
  for (int k = kBegin; k < kEnd; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      packed[k][i] = hopper::PackBf16(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
    }
  }
}

// Once the largest keys have been seen, the maxima of a warp's 16 rows seldom change: then there is
// nothing to multiply (by exactly one).
template <int kRegisters>
__device__ __forceinline__ void RescaleOut(float (&out)[kRegisters], const float (&alpha)[2]) {
  if (!__any_sync(0xffffffffu, alpha[0] != 1.0f || alpha[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) out[i] *= alpha[i % 4 >= 2];
}

// The queries of a warpgroup's 64 rows that stay in registers, as A operands.
template <typename T>
struct Queries {
  uint32_t fragments[T::kQuerySteps > 0 ? T::kQuerySteps : 1][4];

  // q: shared address of the warpgroup's first row.
  __device__ __forceinline__ void Load(uint32_t q) {
    const int lane = threadIdx.x % 32;
    const int row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < T::kQuerySteps; ++step) {
      const int chunk = (step % 4 * 2 + lane / 16) ^ (row % 8);
      const uint32_t address = q + step / 4 * (T::kTileRows * 128) + row * 128 + chunk * 16;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(fragments[step][0]), "=r"(fragments[step][1]), "=r"(fragments[step][2]),
                     "=r"(fragments[step][3])
                   : "r"(address)
                   : "memory");
    }
  }
};

// Issues scores = Q K^T of one tile (not committed). q, k: descriptors.
template <typename T>
__device__ __forceinline__ void IssueScores(float (&scores)[T::kScoreRegisters],
                                            const Queries<T>& queries, uint64_t q, uint64_t k) {
#pragma unroll
  for (int step = 0; step < T::kHeadDim / 16; ++step) {
    const int slab = step / 4;
    const int offset = (step % 4) * 32;
    const uint64_t keys = AdvanceDescriptor(k, slab * T::kSlabBytes + offset);
    if (step < T::kQuerySteps) {
      hopper::WgmmaRegister<T::kTileKeys, false>::Issue(
          scores, queries.fragments[step < T::kQuerySteps ? step : 0], keys, step != 0);
    } else {
      hopper::WgmmaShared<T::kTileKeys, false>::Issue(
          scores, AdvanceDescriptor(q, slab * T::kTileRows * 128 + offset), keys, step != 0);
    }
  }
}

// Issues out += P V of one tile (not committed).
template <typename T>
__device__ __forceinline__ void IssueOut(float (&out)[T::kOutRegisters],
                                         const uint32_t (&probabilities)[T::kKeySteps][4],
                                         uint64_t v) {
#pragma unroll
  for (int step = 0; step < T::kKeySteps; ++step) {
    hopper::WgmmaRegister<T::kValueDim, true>::Issue(out, probabilities[step],
                                                     AdvanceDescriptor(v, step * 2048), 1);
  }
}

// Zeroes the rows [first, kTileKeys) of a V tile: keys that do not exist may be anything in memory,
// and 0 x NaN would reach the output. Called by all threads of a warpgroup.
template <typename T>
__device__ __forceinline__ void ClearValueRows(uint8_t* v, int first, int barrier) {
  const int words_per_row = T::kValueDim / 8;
  const int thread = threadIdx.x % hopper::kWarpgroupThreads;
  for (int i = thread; i < (T::kTileKeys - first) * words_per_row; i += hopper::kWarpgroupThreads) {
    const int row = first + i / words_per_row;
    const int word = i % words_per_row;
    *reinterpret_cast<uint4*>(v + (word / 8) * T::kSlabBytes + row * 128 + (word % 8) * 16) =
        uint4{0, 0, 0, 0};
  }
  hopper::FenceSharedForAsync();
  hopper::NamedBarrierSync(barrier, hopper::kWarpgroupThreads);
}

// 4 x 4 transposition over the quad: in[i] of lane j goes to lane i, place j.
__device__ __forceinline__ uint4 TransposeQuad(const uint32_t (&in)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool upper = threadIdx.x & 2;
  uint32_t keep_a = odd ? in[1] : in[0];
  uint32_t keep_b = odd ? in[3] : in[2];
  const uint32_t got_a = __shfl_xor_sync(0xffffffffu, odd ? in[0] : in[1], 1);
  const uint32_t got_b = __shfl_xor_sync(0xffffffffu, odd ? in[2] : in[3], 1);
  const uint32_t a[2] = {odd ? got_a : keep_a, odd ? keep_a : got_a};
  const uint32_t b[2] = {odd ? got_b : keep_b, odd ? keep_b : got_b};
  const uint32_t got_0 = __shfl_xor_sync(0xffffffffu, upper ? a[0] : b[0], 2);
  const uint32_t got_1 = __shfl_xor_sync(0xffffffffu, upper ? a[1] : b[1], 2);
  return upper ? uint4{got_0, got_1, b[0], b[1]} : uint4{a[0], a[1], got_0, got_1};
}

// Writes rows r and r + 8 of a warpgroup's output, divided by the sums.
template <int kRegisters>
__device__ __forceinline__ void StoreOut(const float (&out)[kRegisters], const float (&inverse)[2],
                                         uint16_t* row_pointer, int64_t row_stride,
                                         const bool (&valid)[2]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    uint16_t* destination = row_pointer + r * 8 * row_stride + lane * 8;
#pragma unroll
    for (int group = 0; group < kRegisters / 16; ++group) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int base = 16 * group + 4 * i + 2 * r;
        packed[i] = hopper::PackBf16(out[base] * inverse[r], out[base + 1] * inverse[r]);
      }
      const uint4 line = TransposeQuad(packed);
      if (valid[r]) *reinterpret_cast<uint4*>(destination + group * 32) = line;
    }
  }
}

}  // namespace hyserve::kernels::cuda::prefill

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_DEVICE_H_
