#include "engine/kernels/cuda/full_attention_prefill.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/cuda/full_attention_prefill_kernel.h"
#include "engine/kernels/cuda/full_attention_prefill_plan.h"
#include "engine/kernels/cuda/operand.h"
#include "engine/kernels/cuda/select_blocks_prefill.h"

namespace hyserve::kernels::cuda {

namespace {

using tensor::CudaStatus;

// The counter of tiles, in front of the scores.
constexpr int64_t kCounterBytes = 256;

size_t WorkspaceBytes(int64_t elements) {
  return static_cast<size_t>(kCounterBytes + elements * static_cast<int64_t>(sizeof(float)));
}

absl::Status RunStep(tensor::CudaDevice& device, const FullAttentionParams& params,
                     const PrefillStep& step, std::byte* memory, PrefillLaunch& launch) {
  std::copy(step.segments.begin(), step.segments.end(), launch.segments);
  launch.num_segments = static_cast<int>(step.segments.size());
  launch.num_tiles = step.num_tiles;
  launch.tile_counter = reinterpret_cast<int*>(memory);
  if (params.selection != nullptr) {
    launch.raw_scores = reinterpret_cast<float*>(memory + kCounterBytes);
    launch.lse = launch.raw_scores + step.score_elements;
  }
  const PagedKv& kv = params.kv;
  absl::Status status =
      CudaStatus(LaunchFullAttentionPrefill(launch, kv.head_dim, kv.v_head_dim, device.num_sms(),
                                            device.stream()),
                 "FullAttention, prefill kernel");
  if (!status.ok() || params.selection == nullptr) return status;
  SelectBlocksLaunch select;
  std::copy(step.segments.begin(), step.segments.end(), select.segments);
  select.num_segments = launch.num_segments;
  select.num_kv_heads = kv.num_kv_heads;
  select.heads_per_group = launch.heads_per_group;
  select.scale = params.scale;
  select.raw_scores = launch.raw_scores;
  select.lse = launch.lse;
  select.selection = params.selection;
  select.selected_blocks = params.selected_blocks;
  select.block_scores = params.block_scores;
  select.scores_stride = params.scores_stride;
  return CudaStatus(LaunchSelectBlocks(select, device.num_sms(), device.stream()),
                    "FullAttention, block selection");
}

}  // namespace

bool FullPrefillSupports(const FullAttentionParams& params) {
  const PagedKv& kv = params.kv;
  return params.q.dtype == tensor::DType::kBF16 && params.out.dtype == tensor::DType::kBF16 &&
         kv.dtype == tensor::DType::kBF16 && HasAlignedRows(params.q) &&
         HasAlignedRows(params.out) && reinterpret_cast<uintptr_t>(kv.data) % 16 == 0 &&
         kv.num_blocks > 0 && PrefillHeadShapeSupported(kv.head_dim, kv.v_head_dim) &&
         params.scale > 0.0f && std::isfinite(params.scale);
}

absl::Status FullAttentionPrefill(tensor::CudaDevice& device, const FullAttentionParams& params,
                                  std::span<const int> sequences) {
  const AttentionBatch& batch = *params.batch;
  const PagedKv& kv = params.kv;
  std::vector<PrefillSequence> rows;
  for (int s : sequences) {
    const int count = batch.row_begin[s + 1] - batch.row_begin[s];
    if (count > 0) rows.push_back({batch.row_begin[s], count, batch.first_position[s], s});
  }
  const std::vector<PrefillStep> steps =
      PlanPrefill(rows, {.num_heads = params.num_heads,
                         .heads_per_group = params.num_heads / kv.num_kv_heads,
                         .kv_bytes_per_token = 2 * (kv.head_dim + kv.v_head_dim),
                         .num_sms = device.num_sms(),
                         .with_scores = params.selection != nullptr});
  int64_t elements = 0;
  for (const PrefillStep& step : steps) {
    elements = std::max(elements, step.score_elements + step.lse_elements);
  }
  absl::StatusOr<std::byte*> memory =
      device.Workspace(tensor::CudaDevice::WorkspaceSlot::kAttention,
                       WorkspaceBytes(elements));
  if (!memory.ok()) return memory.status();

  PrefillLaunch launch;
  const cudaError_t error = EncodePrefillMaps({.q = params.q.data,
                                               .q_rows = params.q.rows,
                                               .q_row_stride = params.q.row_stride,
                                               .num_heads = params.num_heads,
                                               .kv = kv.data,
                                               .num_blocks = kv.num_blocks,
                                               .num_kv_heads = kv.num_kv_heads,
                                               .head_dim = kv.head_dim,
                                               .v_head_dim = kv.v_head_dim},
                                              &launch);
  if (error != cudaSuccess) return CudaStatus(error, "FullAttention, tensor maps");
  launch.num_heads = params.num_heads;
  launch.heads_per_group = params.num_heads / kv.num_kv_heads;
  launch.scale = params.scale;
  launch.page_table = batch.page_table;
  launch.page_table_stride = batch.page_table_stride;
  launch.out = params.out.data;
  launch.out_row_stride = params.out.row_stride;
  for (const PrefillStep& step : steps) {
    if (absl::Status status = RunStep(device, params, step, *memory, launch); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

size_t MostPrefillWorkspaceBytes(const AttentionLimits& limits) {
  if (!PrefillHeadShapeSupported(limits.head_dim, limits.v_head_dim)) return 0;
  return WorkspaceBytes(MostPrefillElements(
      limits.num_rows, kPrefillRows, limits.context_tokens,
      {.num_heads = limits.num_heads, .with_scores = limits.selected_blocks > 0}));
}

}  // namespace hyserve::kernels::cuda
