// Launch interface of the prefill kernel of full attention: plain types, no checks.
//
// Work is a list of segments (consecutive rows of one sequence). Per segment the kernel writes
//   out            softmax(scale q k) v of every row and head, bf16
// and, when raw_scores is given,
//   raw_scores     [num_heads][row tile][block of 64 keys][kPrefillTileRows], ragged: a row tile
//                  has PrefillTileBlocks planes. Holds, per head, block and row, the largest q . k
//                  over the keys that the row sees (before the scale), -inf if none; blocks that no
//                  row of the tile sees are not written
//   lse            [num_heads][num_row_tiles * kPrefillTileRows]: log sum exp of scale q . k
// Rows past num_rows hold nothing of use.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_KERNEL_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_KERNEL_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

inline constexpr int kPrefillTileRows = 128;
inline constexpr int kPrefillBlockTokens = 64;
inline constexpr int kMaxPrefillSegments = 32;

struct PrefillSegment {
  int32_t first_row = 0;       // row of q and out
  int32_t num_rows = 0;
  int32_t first_position = 0;  // position of first_row in its sequence
  int32_t sequence = 0;        // row of page_table
  int32_t num_row_tiles = 0;   // ceil(num_rows / kPrefillTileRows)
  int32_t tile_begin = 0;      // tiles of earlier segments
  int32_t section_heads = 0;   // heads whose keys are to share the L2 cache; divides num_heads
  int64_t score_offset = 0;    // first element in raw_scores
  int64_t lse_offset = 0;      // first element in lse
};

#ifdef __CUDACC__
#define HYSERVE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HYSERVE_HOST_DEVICE inline
#endif

// Pairs of blocks before the segment's first position.
HYSERVE_HOST_DEVICE int64_t PrefillFirstPairs(const PrefillSegment& segment) {
  return (segment.first_position + 127) / 128;
}
// Planes (of kPrefillTileRows floats) that one head's row tile has in raw_scores.
HYSERVE_HOST_DEVICE int64_t PrefillTileBlocks(const PrefillSegment& segment, int64_t row_tile) {
  return 2 * (PrefillFirstPairs(segment) + row_tile + 1);
}
// Planes of the row tiles before this one, of the same head; with num_row_tiles: of the head.
HYSERVE_HOST_DEVICE int64_t PrefillPlanesBefore(const PrefillSegment& segment, int64_t row_tile) {
  return row_tile * (2 * PrefillFirstPairs(segment) + row_tile + 1);
}
#undef HYSERVE_HOST_DEVICE

struct PrefillLaunch {
  CUtensorMap q;  // {q columns, rows}, box {64, kPrefillTileRows}
  CUtensorMap k;  // {head_dim, 64, kv heads, blocks}, box {64, 64, 1, 1}
  CUtensorMap v;  // {v_head_dim, 64, kv heads, blocks}, box {64, 64, 1, 1}
  PrefillSegment segments[kMaxPrefillSegments];
  int num_segments = 0;
  int num_tiles = 0;  // over all segments: row tiles x heads
  int num_heads = 0;
  int heads_per_group = 0;
  float scale = 0.0f;  // > 0
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  void* out = nullptr;         // bf16, 16-byte aligned
  int64_t out_row_stride = 0;  // elements, a multiple of 8
  float* raw_scores = nullptr;  // null: no scores, no lse
  float* lse = nullptr;
  int* tile_counter = nullptr;  // device; zeroed by the launch function
};

// True for the (head_dim, v_head_dim) pairs 64/64, 128/128, 192/128 and 256/256.
bool PrefillHeadShapeSupported(int head_dim, int v_head_dim);

// Enqueues the kernel on at most num_sms blocks. cudaErrorInvalidValue for another head shape.
cudaError_t LaunchFullAttentionPrefill(const PrefillLaunch& launch, int head_dim, int v_head_dim,
                                       int num_sms, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_FULL_ATTENTION_PREFILL_KERNEL_H_
