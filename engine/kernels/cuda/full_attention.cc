// Full attention on the GPU: sequences with many rows go to the prefill kernel where that supports
// the shape, all others to split attention (split_attention.h), with tensor cores where the head
// sizes allow.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kernels/cuda/cuda_ops.h"
#include "engine/kernels/cuda/full_attention_decode.h"
#include "engine/kernels/cuda/full_attention_generic.h"
#include "engine/kernels/cuda/full_attention_prefill.h"
#include "engine/kernels/cuda/select_blocks_decode.h"
#include "engine/kernels/cuda/split_attention.h"

namespace hyserve::kernels::cuda {
namespace {

using tensor::CudaStatus;

// Partial results and block maxima of one launch; more rows are done in several launches.
constexpr int64_t kMostWorkspaceBytes = int64_t{256} << 20;
// Pages times tiles of one launch.
constexpr int64_t kMostCost = int64_t{1} << 30;

absl::Status Refuse(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("FullAttention: ", std::string(what)));
}

absl::Status CheckParams(const FullAttentionParams& params) {
  const PagedKv& kv = params.kv;
  if (kv.dtype != tensor::DType::kBF16) return Refuse("CUDA needs bf16 pages");
  if (kv.head_dim > kGenericMostDim || kv.v_head_dim > kGenericMostDim) {
    return Refuse("CUDA supports head sizes up to 256");
  }
  if (params.num_heads / kv.num_kv_heads > kMaxGroupHeads) {
    return Refuse("CUDA supports up to 512 heads per KV head");
  }
  if (!(params.scale > 0)) return Refuse("CUDA needs a positive scale");
  return absl::OkStatus();
}

// Memory of a launch of split attention: partial results, block maxima, offsets, tickets.
int64_t PartialBytes(const SplitSize& size, int v_head_dim) {
  return size.partial_rows * (v_head_dim + 2) * static_cast<int64_t>(sizeof(float));
}
int64_t MaximaBytes(const SplitSize& size) {
  return size.block_maxima * static_cast<int64_t>(sizeof(float));
}
int64_t Aligned(int64_t maxima_bytes) { return (maxima_bytes + 15) / 16 * 16; }
int64_t OffsetBytes(int64_t num_sequences) {
  return num_sequences * static_cast<int64_t>(sizeof(SplitOffsets));
}
int64_t TicketBytes(int64_t rows, int num_kv_heads) {
  return rows * num_kv_heads * static_cast<int64_t>(sizeof(int32_t));
}

// Sequences that are not the prefill kernel's.
class SplitAttention {
 public:
  SplitAttention(CudaDevice& device, const FullAttentionParams& params)
      : device_(device), params_(params), batch_(*params.batch) {
    const PagedKv& kv = params.kv;
    fast_ = DecodeSupports(kv.head_dim, kv.v_head_dim) && kv.num_blocks > 0 &&
            reinterpret_cast<uintptr_t>(kv.data) % 16 == 0;
    group_heads_ = params.num_heads / kv.num_kv_heads;
    args_.q = params.q.data;
    args_.q_stride = params.q.row_stride;
    args_.out = params.out.data;
    args_.out_stride = params.out.row_stride;
    args_.pages = kv.data;
    args_.num_blocks = kv.num_blocks;
    args_.num_heads = params.num_heads;
    args_.num_kv_heads = kv.num_kv_heads;
    args_.head_dim = kv.head_dim;
    args_.v_head_dim = kv.v_head_dim;
    args_.scale = params.scale;
    args_.row_begin = batch_.device_row_begin;
    args_.first_position = batch_.device_first_position;
    args_.page_table = batch_.page_table;
    args_.page_table_stride = batch_.page_table_stride;
    args_.selection = params.selection;
    args_.selected_blocks = params.selected_blocks;
    args_.block_scores = params.block_scores;
    args_.scores_stride = params.scores_stride;
  }

  // Every sequence of 1 .. kFewRows rows, as many to a launch as the workspace holds.
  absl::Status RunFewRows() {
    args_.row_limit = kFewRows;
    int begin = 0;
    while (begin < batch_.num_seqs) {
      args_.window_begin = 0;
      args_.window_rows = kFewRows;
      SplitSize size;
      int most_rows = 0;
      int end = begin;
      while (end < batch_.num_seqs && end - begin < kMaxSplitSequences) {
        const SequencePart part = Part(end);
        SplitSize with = size;
        with.Add(part, Splits(part), args_.num_kv_heads, group_heads_, TileRows());
        if (size.cost > 0 && !Fits(with)) break;
        size = with;
        most_rows = std::max(most_rows, part.rows);
        ++end;
      }
      args_.first_sequence = begin;
      args_.num_sequences = end - begin;
      args_.window_rows = most_rows;
      begin = end;
      if (size.cost == 0) continue;
      if (absl::Status status = Launch(size); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // One sequence of any number of rows, in windows of rows that fit the workspace.
  absl::Status RunManyRows(int sequence) {
    const int rows = batch_.row_begin[sequence + 1] - batch_.row_begin[sequence];
    args_.row_limit = std::numeric_limits<int>::max();
    args_.first_sequence = sequence;
    args_.num_sequences = 1;
    args_.window_rows = rows;
    while (true) {
      args_.window_begin = rows - args_.window_rows;  // the last window sees the most pages
      if (Fits(SizeOfWindow(sequence)) || args_.window_rows == 1) break;
      args_.window_rows = (args_.window_rows + 1) / 2;
    }
    for (args_.window_begin = 0; args_.window_begin < rows;
         args_.window_begin += args_.window_rows) {
      if (absl::Status status = Launch(SizeOfWindow(sequence)); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  int TileRows() const { return fast_ ? kDecodeTileRows : kGenericTileRows; }
  bool wants_blocks() const {
    return params_.selection != nullptr || params_.block_scores != nullptr;
  }

  SequencePart Part(int sequence) const {
    const int first_position =
        batch_.context_bound > 0 ? batch_.context_bound - 1 : batch_.first_position[sequence];
    return PartOf(args_, batch_.row_begin[sequence], batch_.row_begin[sequence + 1],
                  first_position);
  }
  // At least as many as the kernels will find.
  int Splits(const SequencePart& part) const {
    return batch_.context_bound > 0
               ? MostSplits(part.pages, args_.num_kv_heads, group_heads_, args_.head_dim)
               : part.splits();
  }

  SplitSize SizeOfWindow(int sequence) const {
    SplitSize size;
    const SequencePart part = Part(sequence);
    size.Add(part, Splits(part), args_.num_kv_heads, group_heads_, TileRows());
    return size;
  }

  int64_t PartialBytes(const SplitSize& size) const {
    return cuda::PartialBytes(size, args_.v_head_dim);
  }
  int64_t MaximaBytes(const SplitSize& size) const {
    return wants_blocks() ? cuda::MaximaBytes(size) : 0;
  }
  bool Fits(const SplitSize& size) const {
    return PartialBytes(size) + MaximaBytes(size) <= kMostWorkspaceBytes &&
           size.cost <= kMostCost;
  }

  absl::Status Launch(const SplitSize& size) {
    args_.max_pages = 0;
    args_.max_splits = 0;
    for (int i = 0; i < args_.num_sequences; ++i) {
      const SequencePart part = Part(args_.first_sequence + i);
      if (part.rows == 0) continue;
      args_.max_pages = std::max(args_.max_pages, part.pages);
      args_.max_splits = std::max(args_.max_splits, Splits(part));
    }
    // Maxima first: they are read 16 bytes at a time.
    const int64_t maxima_bytes = Aligned(MaximaBytes(size));
    absl::StatusOr<std::byte*> memory =
        device_.Workspace(CudaDevice::WorkspaceSlot::kAttention,
                          maxima_bytes + PartialBytes(size) + OffsetBytes(args_.num_sequences));
    if (!memory.ok()) return memory.status();
    absl::StatusOr<std::byte*> tickets = device_.Workspace(
        CudaDevice::WorkspaceSlot::kTickets,
        TicketBytes(int64_t{args_.num_sequences} * args_.window_rows, args_.num_kv_heads));
    if (!tickets.ok()) return tickets.status();
    args_.tickets = reinterpret_cast<int32_t*>(*tickets);
    args_.block_maxima = wants_blocks() ? reinterpret_cast<float*>(*memory) : nullptr;
    args_.partial_state = reinterpret_cast<float*>(*memory + maxima_bytes);
    args_.offsets = reinterpret_cast<SplitOffsets*>(args_.partial_state + 2 * size.partial_rows);
    args_.partial_out = reinterpret_cast<float*>(args_.offsets + args_.num_sequences);
    const cudaError_t error =
        fast_ ? LaunchDecodeAttention(args_, device_.num_sms(), device_.stream())
              : LaunchGenericAttention(args_, device_.num_sms(), device_.stream());
    if (error != cudaSuccess) return CudaStatus(error, "FullAttention, split kernel");
    return CudaStatus(LaunchMergeSplits(args_, device_.stream()), "FullAttention, merge kernel");
  }

  CudaDevice& device_;
  const FullAttentionParams& params_;
  const AttentionBatch& batch_;
  SplitAttentionArgs args_;
  bool fast_ = false;
  int group_heads_ = 1;
};

}  // namespace

absl::Status FullAttention(CudaDevice& device, const FullAttentionParams& params) {
  if (absl::Status status = CheckParams(params); !status.ok()) return status;
  const AttentionBatch& batch = *params.batch;
  if (batch.num_rows == 0) return absl::OkStatus();
  if (batch.device_row_begin == nullptr || batch.device_first_position == nullptr) {
    return Refuse("CUDA needs the batch's device arrays");
  }
  SplitAttention split(device, params);
  std::vector<int> many_rows;
  std::vector<int> prefill;
  const bool prefill_supports = FullPrefillSupports(params);
  bool few = false;
  for (int s = 0; s < batch.num_seqs; ++s) {
    const int rows = batch.row_begin[s + 1] - batch.row_begin[s];
    if (rows >= kPrefillRows && prefill_supports) {
      prefill.push_back(s);
    } else if (rows > kFewRows) {
      many_rows.push_back(s);
    } else {
      few |= rows > 0;
    }
  }
  if (!prefill.empty()) {
    absl::Status status = FullAttentionPrefill(device, params, prefill);
    if (!status.ok()) return status;
  }
  for (int sequence : many_rows) {
    if (absl::Status status = split.RunManyRows(sequence); !status.ok()) return status;
  }
  return few ? split.RunFewRows() : absl::OkStatus();
}

absl::Status ReserveFullAttention(CudaDevice& device, const AttentionLimits& limits) {
  const int group_heads = limits.num_heads / limits.num_kv_heads;
  const int64_t rows = limits.num_rows;
  const int64_t few_rows = std::min<int64_t>(rows, kFewRows);
  SequencePart part;
  part.pages = static_cast<int>((limits.context_tokens + kPageTokens - 1) / kPageTokens);
  const int splits = std::max(
      kManyRowsSplits,
      MostSplits(part.pages, limits.num_kv_heads, group_heads, limits.head_dim));
  // As if every row stood at the end of the longest context.
  const auto bytes_of = [&](int64_t count) {
    SplitSize size;
    part.rows = static_cast<int>(count);
    size.Add(part, splits, limits.num_kv_heads, group_heads, kDecodeTileRows);
    return PartialBytes(size, limits.v_head_dim) +
           (limits.selected_blocks > 0 ? MaximaBytes(size) : 0);
  };
  // A launch of more than kMostWorkspaceBytes is one sequence of few rows, or one row.
  const int64_t sequences = std::min<int64_t>(limits.num_seqs, kMaxSplitSequences);
  const int64_t split_bytes =
      std::min(bytes_of(rows), std::max(kMostWorkspaceBytes, bytes_of(few_rows))) +
      Aligned(1) + OffsetBytes(sequences);
  const size_t bytes =
      std::max(static_cast<size_t>(split_bytes), MostPrefillWorkspaceBytes(limits));
  absl::Status status = device.ReserveWorkspace(CudaDevice::WorkspaceSlot::kAttention, bytes);
  if (!status.ok()) return status;
  return device.ReserveWorkspace(
      CudaDevice::WorkspaceSlot::kTickets,
      TicketBytes(std::max(rows, sequences * few_rows), limits.num_kv_heads));
}

}  // namespace hyserve::kernels::cuda
