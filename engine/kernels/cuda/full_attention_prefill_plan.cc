#include "engine/kernels/cuda/full_attention_prefill_plan.h"

#include <algorithm>

#include "engine/kernels/cuda/hopper/tensor_map.h"

namespace hyserve::kernels::cuda {

namespace {

// Keys and values that heads in flight may fill of the L2 cache (50 MB on Hopper, in two halves).
constexpr int64_t kL2Bytes = 24 << 20;
// From so many tiles per multiprocessor on, the last, partly filled round no longer matters.
constexpr int64_t kManyRounds = 8;

// Heads whose keys share the cache: as many whole groups as fit, dividing the number of groups.
int SectionHeads(const PrefillPlanOptions& options, int64_t context) {
  const int groups = options.num_heads / options.heads_per_group;
  int64_t fit = std::max<int64_t>(1, kL2Bytes / (context * options.kv_bytes_per_token));
  fit = std::min<int64_t>(fit, groups);
  while (groups % fit != 0) --fit;
  return static_cast<int>(fit) * options.heads_per_group;
}

int64_t ScoreElements(const PrefillSegment& segment, int64_t row_tiles, int num_heads) {
  return PrefillPlanesBefore(segment, row_tiles) * kPrefillTileRows * num_heads;
}

// The number of row tiles, at most `most`, whose tiles fill whole rounds best.
int64_t BestRowTiles(int64_t most, const PrefillPlanOptions& options) {
  int64_t best = most;
  double best_use = 0.0;
  for (int64_t m = most; m > most / 2; --m) {
    const int64_t tiles = m * options.num_heads;
    const int64_t rounds = (tiles + options.num_sms - 1) / options.num_sms;
    if (rounds >= kManyRounds) return m;
    const double use = static_cast<double>(tiles) / static_cast<double>(rounds * options.num_sms);
    if (use > best_use + 0.02) {
      best_use = use;
      best = m;
    }
  }
  return best;
}

}  // namespace

std::vector<PrefillStep> PlanPrefill(std::span<const PrefillSequence> sequences,
                                     const PrefillPlanOptions& options) {
  std::vector<PrefillStep> steps(1);
  for (const PrefillSequence& sequence : sequences) {
    for (int32_t done = 0; done < sequence.num_rows;) {
      PrefillSegment segment;
      segment.first_row = sequence.first_row + done;
      segment.first_position = sequence.first_position + done;
      segment.sequence = sequence.sequence;
      const int32_t left = sequence.num_rows - done;
      int64_t row_tiles = (left + kPrefillTileRows - 1) / kPrefillTileRows;
      PrefillStep* step = &steps.back();
      if (options.with_scores) {
        // Row tiles that fit beside what the step already holds; a fresh step takes at least one.
        const auto fitting = [&](int64_t used) {
          int64_t most = row_tiles;
          while (most > 0 && (used + ScoreElements(segment, most, options.num_heads)) * 4 >
                                 options.score_bytes) {
            --most;
          }
          return most;
        };
        int64_t most = fitting(step->score_elements);
        if (most < row_tiles && !step->segments.empty()) {
          step = &steps.emplace_back();
          most = fitting(0);
        }
        if (most < row_tiles) row_tiles = BestRowTiles(std::max<int64_t>(most, 1), options);
      }
      if (step->segments.size() == kMaxPrefillSegments) step = &steps.emplace_back();
      segment.num_row_tiles = static_cast<int32_t>(row_tiles);
      segment.num_rows =
          static_cast<int32_t>(std::min<int64_t>(left, row_tiles * kPrefillTileRows));
      segment.section_heads =
          SectionHeads(options, int64_t{segment.first_position} + segment.num_rows);
      segment.tile_begin = step->num_tiles;
      segment.score_offset = step->score_elements;
      segment.lse_offset = step->lse_elements;
      step->num_tiles += segment.num_row_tiles * options.num_heads;
      if (options.with_scores) {
        step->score_elements += ScoreElements(segment, row_tiles, options.num_heads);
        step->lse_elements += row_tiles * kPrefillTileRows * options.num_heads;
      }
      step->segments.push_back(segment);
      done += segment.num_rows;
    }
  }
  if (steps.back().segments.empty()) steps.pop_back();
  return steps;
}

int64_t MostPrefillElements(int64_t num_rows, int least_rows, int64_t context,
                            const PrefillPlanOptions& options) {
  if (!options.with_scores) return 0;
  // A tile of `least_rows` rows or more is a tile.
  const int64_t row_tiles = std::max<int64_t>(1, num_rows / least_rows);
  PrefillSegment last;
  last.first_position = static_cast<int32_t>(std::max<int64_t>(0, context - 1));
  const int64_t of_tile = ScoreElements(last, 1, options.num_heads);
  const int64_t scores = std::min(row_tiles * of_tile,
                                  std::max(of_tile, options.score_bytes / 4));
  return scores + row_tiles * kPrefillTileRows * options.num_heads;
}

cudaError_t EncodePrefillMaps(const PrefillTensors& tensors, PrefillLaunch* launch) {
  const auto u64 = [](int64_t x) { return static_cast<uint64_t>(x); };
  const uint64_t k_bytes = u64(tensors.num_kv_heads) * kPrefillBlockTokens * tensors.head_dim * 2;
  const uint64_t v_bytes = u64(tensors.num_kv_heads) * kPrefillBlockTokens * tensors.v_head_dim * 2;
  const cudaError_t error = hopper::EncodeTensorMap(
      {.data = tensors.q,
       .rank = 2,
       .extents = {u64(tensors.num_heads) * tensors.head_dim, u64(tensors.q_rows)},
       .strides_bytes = {u64(tensors.q_row_stride) * 2},
       .box = {64, kPrefillTileRows}},
      &launch->q);
  if (error != cudaSuccess) return error;
  const auto encode_pages = [&](uint64_t offset, int dim, CUtensorMap* map) {
    return hopper::EncodeTensorMap(
        {.data = static_cast<const char*>(tensors.kv) + offset,
         .rank = 4,
         .extents = {u64(dim), kPrefillBlockTokens, u64(tensors.num_kv_heads),
                     u64(tensors.num_blocks)},
         .strides_bytes = {u64(dim) * 2, u64(dim) * 2 * kPrefillBlockTokens, k_bytes + v_bytes},
         .box = {64, kPrefillBlockTokens, 1, 1}},
        map);
  };
  const cudaError_t k_error = encode_pages(0, tensors.head_dim, &launch->k);
  if (k_error != cudaSuccess) return k_error;
  return encode_pages(k_bytes, tensors.v_head_dim, &launch->v);
}

}  // namespace hyserve::kernels::cuda
