#include "engine/attention/attention_plan.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/kv_cache/kv_layout.h"

namespace hyserve::attention {
namespace {

absl::Status CheckSequence(size_t index, const PlanSequence& sequence) {
  if (sequence.num_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("step: sequence ", index, " has no rows"));
  }
  if (sequence.first_position < 0 ||
      sequence.first_position > std::numeric_limits<int32_t>::max() - sequence.num_rows) {
    return absl::InvalidArgumentError(absl::StrCat("step: sequence ", index,
                                                   " starts at position ",
                                                   sequence.first_position));
  }
  const int64_t context = int64_t{sequence.first_position} + sequence.num_rows;
  if (static_cast<int64_t>(sequence.blocks.size()) < kv_cache::KvLayout::NumBlocks(context)) {
    return absl::InvalidArgumentError(absl::StrCat("step: sequence ", index, " of ", context,
                                                   " tokens has only ", sequence.blocks.size(),
                                                   " blocks"));
  }
  return absl::OkStatus();
}

// Rounded up to 4 to 7 times a power of two, so that a context of any length meets few values, none
// much larger than itself.
int64_t RoundBlocks(int64_t blocks) {
  constexpr int64_t kLeast = 16;
  if (blocks <= kLeast) return kLeast;
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(blocks))) / 4;
  return (blocks + step - 1) / step * step;
}

int64_t ContextBound(int64_t blocks) {
  return std::min<int64_t>(blocks * kv_cache::kTokensPerBlock,
                           std::numeric_limits<int32_t>::max());
}

// Where the batch's arrays begin in the one that holds them all.
struct Offsets {
  size_t row_begin = 0;
  size_t first_position;
  size_t slab_index;
  size_t positions;
  size_t row_seq;
  size_t page_table;
  size_t end;

  Offsets(size_t num_seqs, size_t num_rows, size_t max_blocks)
      : first_position(num_seqs + 1),
        slab_index(first_position + num_seqs),
        positions(slab_index + num_seqs),
        row_seq(positions + num_rows),
        page_table(row_seq + num_rows),
        end(page_table + num_seqs * max_blocks) {}
};

}  // namespace

int64_t AttentionPlan::MostContextBound(int64_t context_tokens) {
  return ContextBound(RoundBlocks(kv_cache::KvLayout::NumBlocks(context_tokens)));
}

absl::Status AttentionPlan::Reserve(tensor::Device& device, int64_t num_seqs, int64_t num_rows,
                                    int64_t context_tokens) {
  const int64_t blocks = RoundBlocks(kv_cache::KvLayout::NumBlocks(context_tokens));
  return arrays_.Reserve(device, Offsets(num_seqs, num_rows, blocks).end);
}

absl::Status AttentionPlan::Build(tensor::Device& device,
                                  std::span<const PlanSequence> sequences, bool repeatable) {
  batch_ = {};
  int64_t num_rows = 0;
  int64_t max_blocks = 1;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const PlanSequence& sequence = sequences[s];
    if (absl::Status status = CheckSequence(s, sequence); !status.ok()) return status;
    num_rows += sequence.num_rows;
    const int context = sequence.first_position + sequence.num_rows;
    max_blocks = std::max(max_blocks, kv_cache::KvLayout::NumBlocks(context));
    batch_.max_rows_per_seq = std::max(batch_.max_rows_per_seq, sequence.num_rows);
    batch_.max_context = std::max(batch_.max_context, context);
  }
  if (num_rows > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError("step: more rows than an int32 can number");
  }
  if (repeatable) {
    max_blocks = RoundBlocks(max_blocks);
    batch_.context_bound = static_cast<int>(ContextBound(max_blocks));
  }
  const size_t num_seqs = sequences.size();
  batch_.num_seqs = static_cast<int>(num_seqs);
  batch_.num_rows = static_cast<int>(num_rows);
  batch_.page_table_stride = static_cast<int>(max_blocks);

  const Offsets at(num_seqs, num_rows, max_blocks);
  arrays_.Reset();
  arrays_.Extend(at.end);

  int32_t row = 0;
  for (size_t s = 0; s < num_seqs; ++s) {
    const PlanSequence& sequence = sequences[s];
    arrays_.host(at.row_begin)[s] = row;
    arrays_.host(at.first_position)[s] = sequence.first_position;
    arrays_.host(at.slab_index)[s] = sequence.slab;
    for (int32_t i = 0; i < sequence.num_rows; ++i, ++row) {
      arrays_.host(at.positions)[row] = sequence.first_position + i;
      arrays_.host(at.row_seq)[row] = static_cast<int32_t>(s);
    }
    const size_t used = std::min<size_t>(sequence.blocks.size(), max_blocks);
    std::copy_n(sequence.blocks.begin(), used, arrays_.host(at.page_table + s * max_blocks));
  }
  arrays_.host(at.row_begin)[num_seqs] = row;

  if (absl::Status status = arrays_.Upload(device); !status.ok()) return status;
  batch_.row_begin = arrays_.host(at.row_begin);
  batch_.first_position = arrays_.host(at.first_position);
  batch_.positions = arrays_.device(at.positions);
  batch_.row_seq = arrays_.device(at.row_seq);
  batch_.device_row_begin = arrays_.device(at.row_begin);
  batch_.device_first_position = arrays_.device(at.first_position);
  batch_.page_table = arrays_.device(at.page_table);
  batch_.slab_index = arrays_.device(at.slab_index);
  return absl::OkStatus();
}

}  // namespace hyserve::attention
