#include "engine/kernels/cuda/select_blocks_prefill.h"

#include <cstdint>

namespace hyserve::kernels::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxSelected = 64;
constexpr int kLoadsInFlight = 8;  // per thread
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float SortDescending(float x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, x, step);
      x = ((lane & step) == 0) == ((lane & size) == 0) ? fmaxf(x, other) : fminf(x, other);
    }
  }
  return x;
}

// The best blocks that a warp has been offered for one row, at most `selected` <= 32 kSlots, in
// ascending order of block: slot s of lane l holds element 32 s + l. All lanes call together.
template <int kSlots>
class TopBlocks {
 public:
  struct Element {
    float value;
    int32_t block;
  };

  __device__ __forceinline__ TopBlocks() {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      value_[s] = -INFINITY;
      block_[s] = -1;
    }
  }

  // Offers column[32 i + lane], i < rounds, as blocks first_block + 32 i + lane; pitch: from one
  // element of the column to the next. -inf stands for no block. buffer: 32 kSlots elements of
  // shared memory for this warp.
  __device__ __forceinline__ void Offer(const float* column, int pitch, int rounds, int first_block,
                                        int selected, Element* buffer) {
    const int lane = threadIdx.x % 32;
    float most[kSlots];
    float best = -INFINITY;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) most[s] = value_[s];
    for (int i = 0; i < rounds; ++i) {
      const float x = column[(32 * i + lane) * pitch];
      best = fmaxf(best, x);
      if constexpr (kSlots == 1) {
        most[0] = fmaxf(most[0], x);
      } else {
        most[0] = i % 2 == 0 ? fmaxf(most[0], x) : most[0];
        most[kSlots - 1] = i % 2 == 1 ? fmaxf(most[kSlots - 1], x) : most[kSlots - 1];
      }
    }
    if (!__any_sync(kFullWarp, best > lowest_)) return;
    // At least `selected` elements reach the selected-th largest of these maxima: what is below it
    // is out. Seldom more than a few others reach it.
    const float threshold = Nth(most, selected - 1);
    int count = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      Take(block_[s] >= 0 && value_[s] >= threshold, value_[s], block_[s], count, buffer);
    }
    for (int i = 0; i < rounds; ++i) {
      const float x = column[(32 * i + lane) * pitch];
      Take(x >= threshold && x > -INFINITY, x, first_block + 32 * i + lane, count, buffer);
    }
    __syncwarp();
    if (count <= 32 * kSlots) {
      Load(buffer, count);
      if (count >= selected) Keep(count, selected, buffer);
    } else {
      for (int i = 0; i < rounds; ++i) {
        OfferOne(column[(32 * i + lane) * pitch], first_block + 32 * i + lane, selected, buffer);
      }
      Keep(selected, selected, buffer);
    }
  }

  // Writes the elements, then -1.
  __device__ __forceinline__ void Write(int32_t* out, int selected) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int place = 32 * s + threadIdx.x % 32;
      if (place < selected) out[place] = block_[s];
    }
  }

 private:
  static __device__ __forceinline__ int Before(unsigned mask) {
    return __popc(mask & ((1u << threadIdx.x % 32) - 1));
  }

  // Appends the elements of the lanes where `taken`, in the order of the lanes.
  static __device__ __forceinline__ void Take(bool taken, float x, int32_t block, int& count,
                                              Element* buffer) {
    const unsigned mask = __ballot_sync(kFullWarp, taken);
    if (mask == 0) return;
    const int place = count + Before(mask);
    if (taken && place < 32 * kSlots) buffer[place] = {x, block};
    count += __popc(mask);
  }

  __device__ __forceinline__ void Load(const Element* buffer, int count) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int place = 32 * s + threadIdx.x % 32;
      value_[s] = place < count ? buffer[place].value : -INFINITY;
      block_[s] = place < count ? buffer[place].block : -1;
    }
    __syncwarp();
  }

  // rank[s] += the elements of values, in order, that go before value (s-th of this lane).
  static __device__ __forceinline__ void Rank(const float (&values)[kSlots], int count,
                                              int (&rank)[kSlots]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < kSlots; ++t) {
      const int end = min(32, count - 32 * t);
#pragma unroll 4
      for (int j = 0; j < end; ++j) {
        const float other = __shfl_sync(kFullWarp, values[t], j);
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          rank[s] += other > values[s] || (other == values[s] && 32 * t + j < 32 * s + lane);
        }
      }
    }
  }

  // The n-th largest (from 0) of the warp's values.
  static __device__ __forceinline__ float Nth(const float (&values)[kSlots], int n) {
    if constexpr (kSlots == 1) {
      return __shfl_sync(kFullWarp, SortDescending(values[0]), n);
    } else {
      int rank[kSlots] = {};
      Rank(values, 32 * kSlots, rank);
      float result = -INFINITY;
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const unsigned mask = __ballot_sync(kFullWarp, rank[s] == n);
        const float found = __shfl_sync(kFullWarp, values[s], mask == 0 ? 0 : __ffs(mask) - 1);
        if (mask != 0) result = found;
      }
      return result;
    }
  }

  // Keeps the best `selected` of count elements; count >= selected.
  __device__ __forceinline__ void Keep(int count, int selected, Element* buffer) {
    int rank[kSlots] = {};
    Rank(value_, count, rank);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const unsigned mask = __ballot_sync(kFullWarp, block_[s] >= 0 && rank[s] == selected - 1);
      const float last = __shfl_sync(kFullWarp, value_[s], mask == 0 ? 0 : __ffs(mask) - 1);
      if (mask != 0) lowest_ = last;
    }
    if (count == selected) return;
    int kept = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      Take(block_[s] >= 0 && rank[s] < selected, value_[s], block_[s], kept, buffer);
    }
    __syncwarp();
    Load(buffer, kept);
  }

  // Offers one block per lane, however many of them are good.
  __device__ __forceinline__ void OfferOne(float x, int32_t block, int selected, Element* buffer) {
    const int lane = threadIdx.x % 32;
    int rank[kSlots] = {};
    Rank(value_, 32 * kSlots, rank);
    int x_rank = 0;
    for (int j = 0; j < 32; ++j) {
      const float other = __shfl_sync(kFullWarp, x, j);
      x_rank += other > x || (other == x && j < lane);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        rank[s] += other > value_[s];
        x_rank += __shfl_sync(kFullWarp, value_[s], j) >= x;
      }
    }
    int kept = 0;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      Take(block_[s] >= 0 && rank[s] < selected, value_[s], block_[s], kept, buffer);
    }
    Take(x > -INFINITY && x_rank < selected, x, block, kept, buffer);
    __syncwarp();
    Load(buffer, kept);
  }

  float value_[kSlots];
  int32_t block_[kSlots];
  float lowest_ = -INFINITY;  // only better blocks enter
};

// A thread block handles kTokens neighbouring rows of one KV head, kChunk key blocks at a time:
// first every thread reduces the group's heads for its row and some key blocks into shared memory
// (lanes are rows, so that loads are whole lines), then every warp offers the chunk to its rows.
// kHeadStep heads are read at a time.
template <int kSlots, int kTokens, int kHeadStep>
__global__ void __launch_bounds__(kThreads, kSlots == 1 ? 4 : 2)
    SelectBlocksKernel(const __grid_constant__ SelectBlocksLaunch launch) {
  constexpr int kChunk = 8192 / kTokens;
  constexpr int kBlocksPerWarp = 32 / kTokens;  // key blocks that a warp reads at once
  constexpr int kBlockStride = kWarps * kBlocksPerWarp;
  constexpr int kBlockStep = kLoadsInFlight / kHeadStep;
  constexpr int kRows = kTokens / kWarps;  // per warp
  constexpr int kPitch = kTokens + 1;
  __shared__ float chunk[kChunk * kPitch];
  __shared__ typename TopBlocks<kSlots>::Element buffers[kWarps][32 * kSlots];
  extern __shared__ float lse[];  // [heads_per_group][kTokens]

  // The last rows, which see the most blocks, come first.
  const int group = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  int s = 0;
  while (s + 1 < launch.num_segments && group >= launch.group_begin[s + 1]) ++s;
  const PrefillSegment& segment = launch.segments[s];
  const int first_row = (group - launch.group_begin[s]) * kTokens;
  const int kv_head = blockIdx.y;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int token = lane % kTokens;
  const int row = first_row + token;
  const int64_t padded_rows = int64_t{segment.num_row_tiles} * kPrefillTileRows;
  const int first_head = kv_head * launch.heads_per_group;
  for (int i = threadIdx.x; i < launch.heads_per_group * kTokens; i += kThreads) {
    lse[i] = launch.lse[segment.lse_offset + (first_head + i / kTokens) * padded_rows + first_row +
                        i % kTokens];
  }
  const int num_tokens = min(kTokens, segment.num_rows - first_row);
  const int most_visible =
      (segment.first_position + first_row + num_tokens - 1) / kPrefillBlockTokens + 1;
  const int visible = token < num_tokens
                          ? (segment.first_position + row) / kPrefillBlockTokens + 1
                          : 0;
  const int64_t head_step = PrefillPlanesBefore(segment, segment.num_row_tiles) * kPrefillTileRows;
  const float* planes =
      launch.raw_scores + segment.score_offset + first_head * head_step +
      PrefillPlanesBefore(segment, first_row / kPrefillTileRows) * kPrefillTileRows +
      row % kPrefillTileRows;
  const int64_t item = (int64_t{segment.first_row} + row) * launch.num_kv_heads + kv_head;
  float* score_row =
      launch.block_scores == nullptr ? nullptr : launch.block_scores + item * launch.scores_stride;
  const int selected = launch.selected_blocks;
  TopBlocks<kSlots> top[kRows];
  __syncthreads();

  for (int begin = 0; begin < most_visible; begin += kChunk) {
    const int end = min(kChunk, (most_visible - begin + 31) / 32 * 32);
    for (int first = warp * kBlocksPerWarp + lane / kTokens; first < end;
         first += kBlockStep * kBlockStride) {
      float best[kBlockStep];
#pragma unroll
      for (int u = 0; u < kBlockStep; ++u) best[u] = -INFINITY;
      const float* source = planes + int64_t{begin + first} * kPrefillTileRows;
      for (int head = 0; head < launch.heads_per_group; head += kHeadStep) {
        float raw[kHeadStep][kBlockStep];
#pragma unroll
        for (int h = 0; h < kHeadStep; ++h) {
#pragma unroll
          for (int u = 0; u < kBlockStep; ++u) {
            raw[h][u] = begin + first + u * kBlockStride < visible
                            ? __ldcs(source + u * kBlockStride * kPrefillTileRows)
                            : -INFINITY;
          }
          source += head_step;
        }
#pragma unroll
        for (int h = 0; h < kHeadStep; ++h) {
          const float shift = lse[(head + h) * kTokens + token];
#pragma unroll
          for (int u = 0; u < kBlockStep; ++u) {
            best[u] = fmaxf(best[u], fmaf(raw[h][u], launch.scale, -shift));
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kBlockStep; ++u) {
        const int in_chunk = first + u * kBlockStride;
        if (in_chunk >= end) continue;
        const bool seen = begin + in_chunk < visible;
        chunk[in_chunk * kPitch + token] = seen ? best[u] : -INFINITY;
        if (score_row != nullptr && seen) score_row[begin + in_chunk] = best[u];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      top[i].Offer(chunk + warp * kRows + i, kPitch, end / 32, begin, selected, buffers[warp]);
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int t = warp * kRows + i;
    if (t >= num_tokens) break;
    const int64_t place =
        (int64_t{segment.first_row} + first_row + t) * launch.num_kv_heads + kv_head;
    top[i].Write(launch.selection + place * selected, selected);
  }
  if (score_row != nullptr && token < num_tokens) {
    for (int64_t b = warp * kBlocksPerWarp + lane / kTokens; b < launch.scores_stride;
         b += kBlockStride) {
      if (b >= visible) score_row[b] = -INFINITY;
    }
  }
}

template <int kSlots, int kTokens, int kHeadStep>
cudaError_t Launch(SelectBlocksLaunch& launch, cudaStream_t stream) {
  int groups = 0;
  for (int s = 0; s < launch.num_segments; ++s) {
    launch.group_begin[s] = groups;
    groups += (launch.segments[s].num_rows + kTokens - 1) / kTokens;
  }
  const size_t shared_bytes = sizeof(float) * launch.heads_per_group * kTokens;
  auto* kernel = &SelectBlocksKernel<kSlots, kTokens, kHeadStep>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const dim3 grid(groups, launch.num_kv_heads);
  kernel<<<grid, kThreads, shared_bytes, stream>>>(launch);
  return cudaGetLastError();
}

template <int kSlots, int kTokens>
cudaError_t LaunchHeads(SelectBlocksLaunch& launch, cudaStream_t stream) {
  if (launch.heads_per_group % 8 == 0) return Launch<kSlots, kTokens, 8>(launch, stream);
  if (launch.heads_per_group % 4 == 0) return Launch<kSlots, kTokens, 4>(launch, stream);
  return Launch<kSlots, kTokens, 1>(launch, stream);
}

template <int kSlots>
cudaError_t LaunchTokens(SelectBlocksLaunch& launch, int num_sms, cudaStream_t stream) {
  int64_t groups = 0;
  for (int s = 0; s < launch.num_segments; ++s) groups += launch.segments[s].num_rows / 32 + 1;
  const int64_t blocks = groups * launch.num_kv_heads;
  if (blocks >= 16 * num_sms) return LaunchHeads<kSlots, 32>(launch, stream);
  if (blocks >= 2 * num_sms) return LaunchHeads<kSlots, 16>(launch, stream);
  return LaunchHeads<kSlots, 8>(launch, stream);
}

}  // namespace

cudaError_t LaunchSelectBlocks(SelectBlocksLaunch launch, int num_sms, cudaStream_t stream) {
  if (launch.selected_blocks < 1 || launch.selected_blocks > kMaxSelected) {
    return cudaErrorInvalidValue;
  }
  return launch.selected_blocks <= 32 ? LaunchTokens<1>(launch, num_sms, stream)
                                      : LaunchTokens<2>(launch, num_sms, stream);
}

}  // namespace hyserve::kernels::cuda
