// Chooses the kernels of WindowSparseAttention: sequences with few rows in the step go to the
// decode kernels, others to the prefill kernel, shapes that these cannot do to the generic one.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/window_sparse_attention_launch.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::DType;

SparseMatrix Matrix(const TensorView& view) {
  return {static_cast<const uint16_t*>(view.data), view.row_stride};
}

SparseGate Gate(const TensorView& view, int num_heads, int v_head_dim) {
  if (view.empty()) return {};
  // With one value column a gate per element is a gate per head.
  return {static_cast<const uint16_t*>(view.data), view.row_stride,
          view.cols != num_heads && v_head_dim > 1};
}

absl::Status CheckSupported(const WindowSparseAttentionParams& params) {
  const WindowKv& ring = params.ring;
  const auto refuse = [](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("WindowSparseAttention on CUDA: ", what...));
  };
  if (ring.dtype != DType::kBF16) {
    return refuse("the rings must be bf16, are ", std::string(tensor::Name(ring.dtype)));
  }
  if (params.selection != nullptr && params.kv.dtype != DType::kBF16) {
    return refuse("the pages must be bf16, are ", std::string(tensor::Name(params.kv.dtype)));
  }
  if (ring.head_dim > kSparseMaxDim || ring.v_head_dim > kSparseMaxDim) {
    return refuse("head dims are at most ", kSparseMaxDim, ", got ", ring.head_dim, " and ",
                  ring.v_head_dim);
  }
  const AttentionBatch& batch = *params.batch;
  if (batch.device_row_begin == nullptr || batch.device_first_position == nullptr) {
    return refuse("the batch lacks a device array");
  }
  return absl::OkStatus();
}

WindowSparseArgs MakeArgs(const WindowSparseAttentionParams& params) {
  const AttentionBatch& batch = *params.batch;
  const WindowKv& ring = params.ring;
  WindowSparseArgs args;
  args.q = Matrix(params.q);
  args.out = static_cast<uint16_t*>(params.out.data);
  args.out_stride = params.out.row_stride;
  args.num_rows = batch.num_rows;
  args.num_seqs = batch.num_seqs;
  args.num_heads = params.num_heads;
  args.num_kv_heads = ring.num_kv_heads;
  args.head_dim = ring.head_dim;
  args.v_head_dim = ring.v_head_dim;
  args.scale = params.scale;
  args.positions = batch.positions;
  args.row_seq = batch.row_seq;
  args.row_begin = batch.device_row_begin;
  args.first_position = batch.device_first_position;
  args.page_table = batch.page_table;
  args.page_table_stride = batch.page_table_stride;
  args.slab_index = batch.slab_index;
  args.ring = static_cast<const char*>(ring.data);
  args.slab_stride_bytes = ring.slab_stride_bytes;
  args.ring_k_offset_bytes = ring.k_offset_bytes;
  args.ring_v_offset_bytes = ring.v_offset_bytes;
  args.window = ring.window;
  args.step_k = Matrix(params.step_k);
  args.step_v = Matrix(params.step_v);
  args.window_sink = params.window_sink;
  args.window_gate = Gate(params.window_gate, params.num_heads, ring.v_head_dim);
  if (params.selection == nullptr) return args;
  args.pages = static_cast<const uint16_t*>(params.kv.data);
  args.num_blocks = params.kv.num_blocks;
  args.selection = params.selection;
  args.selected_blocks = params.selected_blocks;
  args.sparse_sink = params.sparse_sink;
  args.sparse_gate = Gate(params.sparse_gate, params.num_heads, ring.v_head_dim);
  return args;
}

// Null when the kernels need no memory, or when there is none to be had: then tiles do it all.
absl::StatusOr<char*> PrefillWorkspace(CudaDevice& device, const WindowSparseArgs& args,
                                       const SparsePrefillWork& work) {
  const size_t bytes = WindowSparsePrefillWorkspaceBytes(args, work);
  if (bytes == 0) return nullptr;
  const absl::StatusOr<std::byte*> memory =
      device.Workspace(CudaDevice::WorkspaceSlot::kAttention, bytes);
  if (absl::IsResourceExhausted(memory.status())) return nullptr;
  if (!memory.ok()) return memory.status();
  return reinterpret_cast<char*>(*memory);
}

}  // namespace

absl::Status WindowSparseAttention(CudaDevice& device, const WindowSparseAttentionParams& params) {
  const AttentionBatch& batch = *params.batch;
  if (batch.num_rows == 0) return absl::OkStatus();
  if (absl::Status status = CheckSupported(params); !status.ok()) return status;
  WindowSparseArgs args = MakeArgs(params);
  if (!WindowSparsePrefillSupports(args)) {
    return tensor::CudaStatus(LaunchWindowSparseGeneric(args, device.stream()),
                              "window and sparse attention, generic kernel");
  }
  const int tile_tokens = WindowSparsePrefillTileTokens(args);
  SparsePrefillWork prefill;
  prefill.min_rows = WindowSparseDecodeSupports(args) ? kSparseDecodeRows : 0;
  int short_rows = 0;
  args.one_row_each = true;
  for (int seq = 0; seq < batch.num_seqs; ++seq) {
    const int rows = batch.row_begin[seq + 1] - batch.row_begin[seq];
    args.one_row_each = args.one_row_each && rows == 1;
    if (rows <= prefill.min_rows) {
      short_rows = std::max(short_rows, rows);
      continue;
    }
    const int context =
        batch.context_bound > 0 ? batch.context_bound : batch.first_position[seq] + rows;
    const int blocks = (context + kSparseBlock - 1) / kSparseBlock;
    prefill.num_rows += rows;
    prefill.num_tiles += (rows + tile_tokens - 1) / tile_tokens;
    prefill.num_blocks += blocks;
    prefill.max_blocks = std::max(prefill.max_blocks, blocks);
  }
  const absl::StatusOr<char*> workspace = PrefillWorkspace(device, args, prefill);
  if (!workspace.ok()) return workspace.status();
  absl::Status status = tensor::CudaStatus(
      LaunchWindowSparsePrefill(args, prefill, *workspace, device.num_sms(), device.stream()),
      "window and sparse attention, prefill kernels");
  if (!status.ok()) return status;
  return tensor::CudaStatus(
      LaunchWindowSparseDecode(args, short_rows, DecodeKernel::kAuto, device.stream()),
      "window and sparse attention, decode kernel");
}

absl::Status ReserveWindowSparseAttention(CudaDevice& device, const AttentionLimits& limits) {
  WindowSparseArgs args;
  args.num_rows = static_cast<int>(limits.num_rows);
  args.num_seqs = static_cast<int>(limits.num_seqs);
  args.num_heads = limits.num_heads;
  args.num_kv_heads = limits.num_kv_heads;
  args.head_dim = limits.head_dim;
  args.v_head_dim = limits.v_head_dim;
  args.selected_blocks = limits.selected_blocks;
  const size_t bytes = WindowSparsePrefillMostWorkspaceBytes(
      args, static_cast<int>((limits.context_tokens + kSparseBlock - 1) / kSparseBlock));
  if (bytes == 0) return absl::OkStatus();
  return device.ReserveWorkspace(CudaDevice::WorkspaceSlot::kAttention, bytes);
}

}  // namespace hyserve::kernels::cuda
