// Causal attention of a full layer with its oracle output.
//
// A row's keys are cut into splits of kSplitBlocks blocks on a grid from position 0. Every split
// has its own softmax, and splits are merged in ascending order, whether one thread walks them all
// or several share them (long sequences with few rows).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/kernels/cpu/attention_tile.h"
#include "engine/kernels/cpu/block_selection.h"
#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

constexpr int kSplitBlocks = 32;
// Rows (tokens times heads of the group) of a tile: enough to pay for packing a block, few enough
// for the second-level cache.
constexpr int kTileRows = 192;
constexpr int kLeastTileRows = 48;
constexpr int kTasksPerThread = 4;

struct Tile {
  int seq = 0;
  int kv_head = 0;
  int token_begin = 0;  // of the sequence's rows in this step
  int num_tokens = 0;
  int64_t num_blocks = 0;  // that its last token sees
  int64_t num_splits = 0;
  // When threads share the splits:
  bool shared = false;
  float* partials = nullptr;   // one SoftmaxState per split
  float* block_max = nullptr;  // [rows, num_blocks]
};

struct Task {
  const Tile* tile = nullptr;
  int64_t split = -1;  // -1: all of them
};

class Runner {
 public:
  Runner(const SimdKernels& simd, const FullAttentionParams& params)
      : simd_(simd), params_(params), batch_(*params.batch) {
    shape_ = {params.num_heads / params.kv.num_kv_heads, params.kv.head_dim, params.kv.v_head_dim,
              simd.panel_cols, params.kv.dtype};
  }

  absl::Status Run(CpuDevice& device);

 private:
  void PlanTiles(int num_threads);
  int64_t PlanSplits(int num_threads);  // returns floats of workspace
  int64_t ScratchFloats() const;
  bool wants_scores() const {
    return params_.selection != nullptr || params_.block_scores != nullptr;
  }
  int64_t Rows(const Tile& tile) const {
    return static_cast<int64_t>(tile.num_tokens) * shape_.heads;
  }

  void RunTask(const Task& task, float* scratch) const;
  void RunSplit(const Tile& tile, int64_t split, AttentionTile& attention, float* block_max) const;
  // Normalises and writes the tile's rows, and selects their blocks.
  void Finish(const Tile& tile, const SoftmaxState& state, const float* block_max,
              float* scores) const;

  const SimdKernels& simd_;
  const FullAttentionParams& params_;
  const AttentionBatch& batch_;
  TileShape shape_;
  std::vector<Tile> tiles_;
  std::vector<Task> tasks_;
};

void Runner::PlanTiles(int num_threads) {
  // Smaller tiles while there are too few to share.
  int tile_rows = kTileRows;
  while (true) {
    tiles_.clear();
    const int tokens_per_tile = std::max(1, tile_rows / shape_.heads);
    for (int seq = 0; seq < batch_.num_seqs; ++seq) {
      const int tokens = batch_.row_begin[seq + 1] - batch_.row_begin[seq];
      for (int begin = 0; begin < tokens; begin += tokens_per_tile) {
        const int count = std::min(tokens_per_tile, tokens - begin);
        const int64_t keys = static_cast<int64_t>(batch_.first_position[seq]) + begin + count;
        const int64_t blocks = (keys + kBlockTokens - 1) / kBlockTokens;
        for (int g = 0; g < params_.kv.num_kv_heads; ++g) {
          tiles_.push_back({seq, g, begin, count, blocks,
                            (blocks + kSplitBlocks - 1) / kSplitBlocks});
        }
      }
    }
    if (static_cast<int>(tiles_.size()) >= kTasksPerThread * num_threads ||
        tile_rows / 2 < kLeastTileRows || num_threads == 1) {
      break;
    }
    tile_rows /= 2;
  }
}

int64_t Runner::PlanSplits(int num_threads) {
  // A block costs its packing and its rows.
  const auto cost = [&](const Tile& tile) { return tile.num_blocks * (Rows(tile) + 16); };
  int64_t total = 0;
  for (const Tile& tile : tiles_) total += cost(tile);
  const int64_t share = total / (kTasksPerThread * num_threads) + 1;
  int64_t floats = 0;
  std::vector<std::pair<int64_t, Task>> ordered;
  for (Tile& tile : tiles_) {
    // Few rows only, so that partial results stay small.
    tile.shared = num_threads > 1 && tile.num_splits > 1 && cost(tile) > share &&
                  Rows(tile) <= 2 * kLeastTileRows;
    if (!tile.shared) {
      ordered.push_back({cost(tile), {&tile, -1}});
      continue;
    }
    floats += tile.num_splits * shape_.StateFloats(tile.num_tokens) + Rows(tile) * tile.num_blocks;
    for (int64_t i = 0; i < tile.num_splits; ++i) {
      ordered.push_back({cost(tile) / tile.num_splits, {&tile, i}});
    }
  }
  // Long tasks first, so that no thread starts one when the others are done.
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [unused, task] : ordered) tasks_.push_back(task);
  return floats;
}

int64_t Runner::ScratchFloats() const {
  int64_t most = 0;
  for (const Tile& tile : tiles_) {
    // The tile, the merged state, the block maxima and one row of scores.
    most = std::max(most, shape_.TileFloats(tile.num_tokens) + shape_.BlockFloats() +
                              shape_.StateFloats(tile.num_tokens) +
                              (Rows(tile) + 1) * tile.num_blocks + 64);
  }
  return most;
}

absl::Status Runner::Run(CpuDevice& device) {
  const int num_threads = device.pool().num_threads();
  PlanTiles(num_threads);
  const int64_t workspace_floats = PlanSplits(num_threads);
  absl::StatusOr<CpuDevice::ThreadScratch> scratch =
      device.Scratch(ScratchFloats() * sizeof(float));
  if (!scratch.ok()) return scratch.status();
  std::vector<const Tile*> shared;
  if (workspace_floats > 0) {
    absl::StatusOr<std::byte*> memory =
        device.Workspace(CpuDevice::WorkspaceSlot::kOp, workspace_floats * sizeof(float));
    if (!memory.ok()) return memory.status();
    float* next = reinterpret_cast<float*>(*memory);
    for (Tile& tile : tiles_) {
      if (!tile.shared) continue;
      tile.partials = next;
      next += tile.num_splits * shape_.StateFloats(tile.num_tokens);
      tile.block_max = next;
      next += Rows(tile) * tile.num_blocks;
      shared.push_back(&tile);
    }
  }
  device.pool().ParallelFor(static_cast<int64_t>(tasks_.size()), [&](int64_t i, int thread) {
    RunTask(tasks_[i], reinterpret_cast<float*>(scratch->of(thread)));
  });
  device.pool().ParallelFor(static_cast<int64_t>(shared.size()), [&](int64_t i, int thread) {
    const Tile& tile = *shared[i];
    const int64_t rows = Rows(tile);
    const SoftmaxState state = SoftmaxState::At(tile.partials, rows);
    for (int64_t split = 1; split < tile.num_splits; ++split) {
      float* partial = tile.partials + split * shape_.StateFloats(tile.num_tokens);
      MergeState(simd_, shape_, rows, SoftmaxState::At(partial, rows), state);
    }
    Finish(tile, state, tile.block_max, reinterpret_cast<float*>(scratch->of(thread)));
  });
  return absl::OkStatus();
}

void Runner::RunSplit(const Tile& tile, int64_t split, AttentionTile& attention,
                      float* block_max) const {
  attention.ResetState();
  const int64_t first_position = batch_.first_position[tile.seq] + tile.token_begin;
  const int32_t* pages =
      batch_.page_table + static_cast<int64_t>(tile.seq) * batch_.page_table_stride;
  const int64_t end = std::min(tile.num_blocks, (split + 1) * kSplitBlocks);
  BlockKeys pointers;
  for (int64_t block = split * kSplitBlocks; block < end; ++block) {
    const int64_t key = block * kBlockTokens;
    PagePointers(params_.kv, pages[block], tile.kv_head, pointers);
    attention.SetBlock(pointers);
    if (block + 1 < end) {
      PagePointers(params_.kv, pages[block + 1], tile.kv_head, pointers);
      attention.SetNextBlock(pointers.keys[0], pointers.values[0]);
    }
    const auto max_at = [&](int token) {
      return block_max == nullptr
                 ? nullptr
                 : block_max + static_cast<int64_t>(token) * shape_.heads * tile.num_blocks + block;
    };
    // Tokens before `first` see nothing of this block, those from `whole` on see all of it.
    const int tokens = tile.num_tokens;
    const int first = static_cast<int>(std::clamp<int64_t>(key - first_position, 0, tokens));
    const int whole = static_cast<int>(
        std::clamp<int64_t>(key + kBlockTokens - 1 - first_position, first, tokens));
    for (int token = first; token < whole; ++token) {
      attention.Attend(token, token + 1, 0, static_cast<int>(first_position + token + 1 - key),
                       max_at(token), tile.num_blocks);
    }
    if (whole < tokens) {
      attention.Attend(whole, tokens, 0, kBlockTokens, max_at(whole), tile.num_blocks);
    }
  }
}

void Runner::RunTask(const Task& task, float* scratch) const {
  const Tile& tile = *task.tile;
  const int64_t rows = Rows(tile);
  AttentionTile attention(simd_, shape_, tile.num_tokens, scratch);
  scratch += shape_.TileFloats(tile.num_tokens) + shape_.BlockFloats();
  attention.LoadQueries(params_.q, batch_.row_begin[tile.seq] + tile.token_begin, tile.kv_head,
                        params_.scale);
  const auto copy_state = [&](float* to) {
    std::memcpy(to, attention.state().max, shape_.StateFloats(tile.num_tokens) * sizeof(float));
  };
  if (task.split >= 0) {
    RunSplit(tile, task.split, attention, tile.block_max);
    copy_state(tile.partials + task.split * shape_.StateFloats(tile.num_tokens));
    return;
  }
  const SoftmaxState merged = SoftmaxState::At(scratch, rows);
  float* block_max = scratch + shape_.StateFloats(tile.num_tokens);
  float* scores = block_max + rows * tile.num_blocks;
  for (int64_t split = 0; split < tile.num_splits; ++split) {
    RunSplit(tile, split, attention, wants_scores() ? block_max : nullptr);
    if (split == 0) {
      copy_state(merged.max);
    } else {
      MergeState(simd_, shape_, rows, attention.state(), merged);
    }
  }
  Finish(tile, merged, block_max, scores);
}

void Runner::Finish(const Tile& tile, const SoftmaxState& state, const float* block_max,
                    float* scores) const {
  const int64_t v_dim = shape_.v_head_dim;
  std::vector<float> lse(shape_.heads);
  std::vector<float> ordered(shape_.v_cols());
  for (int token = 0; token < tile.num_tokens; ++token) {
    const int64_t row = batch_.row_begin[tile.seq] + tile.token_begin + token;
    float* out = params_.out.Row<float>(row) + tile.kv_head * shape_.heads * v_dim;
    for (int h = 0; h < shape_.heads; ++h) {
      const int64_t r = static_cast<int64_t>(token) * shape_.heads + h;
      const float* columns =
          OrderedColumns(simd_, shape_, state.out + r * shape_.v_cols(), ordered.data());
      simd_.scale(columns, 1.0f / state.sum[r], out + h * v_dim, v_dim);
      lse[h] = state.max[r] + std::log(state.sum[r]);
    }
    if (!wants_scores()) continue;
    const int64_t position = batch_.first_position[tile.seq] + tile.token_begin + token;
    const int64_t visible = position / kBlockTokens + 1;
    simd_.block_scores(
        block_max + static_cast<int64_t>(token) * shape_.heads * tile.num_blocks,
        tile.num_blocks, lse.data(), shape_.heads, visible, scores);
    const int64_t place = row * params_.kv.num_kv_heads + tile.kv_head;
    if (params_.block_scores != nullptr) {
      float* to = params_.block_scores + place * params_.scores_stride;
      std::copy(scores, scores + visible, to);
      std::fill(to + visible, to + params_.scores_stride, -std::numeric_limits<float>::infinity());
    }
    if (params_.selection != nullptr) {
      SelectBlocks(scores, visible, params_.selected_blocks,
                   params_.selection + place * params_.selected_blocks);
    }
  }
}

}  // namespace

absl::Status FullAttention(CpuDevice& device, const FullAttentionParams& params) {
  return Runner(KernelsOf(device), params).Run(device);
}

}  // namespace hyserve::kernels::cpu
