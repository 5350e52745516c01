// Window branch and sparse branch of a sparse layer; window branch of a sliding layer.
//
// Keys are taken in blocks of 64 positions on a grid from position 0 in both branches, so a row's
// arithmetic depends on its position alone: not on where the step began, nor on whether a key comes
// from the ring or from the step's own rows. A tile of tokens walks the union of its tokens' blocks
// in ascending order; each block is packed once for all tokens that selected it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/kernels/cpu/attention_tile.h"
#include "engine/kernels/cpu/cpu_ops.h"

namespace hyserve::kernels::cpu {
namespace {

using tensor::DType;

constexpr int kTileTokens = 64;
constexpr int kLeastTileTokens = 8;
constexpr int kTasksPerThread = 4;

struct Tile {
  int seq = 0;
  int kv_head = 0;
  int token_begin = 0;
  int num_tokens = 0;
};

class Runner {
 public:
  Runner(const SimdKernels& simd, const WindowSparseAttentionParams& params)
      : simd_(simd), params_(params), batch_(*params.batch) {
    const WindowKv& ring = params.ring;
    const int heads = params.num_heads / ring.num_kv_heads;
    window_shape_ = {heads, ring.head_dim, ring.v_head_dim, simd.panel_cols, ring.dtype};
    sparse_shape_ = {heads, params.kv.head_dim, params.kv.v_head_dim, simd.panel_cols,
                     params.kv.dtype};
  }

  absl::Status Run(CpuDevice& device);

 private:
  void PlanTiles(int num_threads);
  int64_t FirstPosition(const Tile& tile) const {
    return static_cast<int64_t>(batch_.first_position[tile.seq]) + tile.token_begin;
  }
  int64_t FirstRow(const Tile& tile) const {
    return static_cast<int64_t>(batch_.row_begin[tile.seq]) + tile.token_begin;
  }

  void RunWindow(const Tile& tile, float* scratch) const;
  void RunSparse(const Tile& tile, float* scratch) const;
  // The sparse branch follows: its first page may come while the window's last block is worked on.
  void FetchFirstPage(const Tile& tile, AttentionTile& attention) const;
  // Keys of positions [begin, begin + 64) of which [lo, hi) are needed.
  void WindowPointers(const Tile& tile, int64_t begin, int64_t lo, int64_t hi,
                      BlockKeys& out) const;
  // Adds the branch's share to the output rows (or sets them, first branch).
  void Finish(const Tile& tile, const AttentionTile& attention, const float* sink,
              const TensorView& gate, bool accumulate) const;

  const SimdKernels& simd_;
  const WindowSparseAttentionParams& params_;
  const AttentionBatch& batch_;
  TileShape window_shape_;
  TileShape sparse_shape_;
  std::vector<Tile> tiles_;
};

void Runner::PlanTiles(int num_threads) {
  int tile_tokens = kTileTokens;
  while (true) {
    tiles_.clear();
    for (int seq = 0; seq < batch_.num_seqs; ++seq) {
      const int tokens = batch_.row_begin[seq + 1] - batch_.row_begin[seq];
      for (int begin = 0; begin < tokens; begin += tile_tokens) {
        for (int g = 0; g < params_.ring.num_kv_heads; ++g) {
          tiles_.push_back({seq, g, begin, std::min(tile_tokens, tokens - begin)});
        }
      }
    }
    if (static_cast<int>(tiles_.size()) >= kTasksPerThread * num_threads ||
        tile_tokens / 2 < kLeastTileTokens || num_threads == 1) {
      return;
    }
    tile_tokens /= 2;
  }
}

absl::Status Runner::Run(CpuDevice& device) {
  PlanTiles(device.pool().num_threads());
  int tokens = 0;
  for (const Tile& tile : tiles_) tokens = std::max(tokens, tile.num_tokens);
  int64_t floats = window_shape_.TileFloats(tokens) + window_shape_.BlockFloats();
  if (params_.selection != nullptr) {
    floats = std::max(floats, sparse_shape_.TileFloats(tokens) + sparse_shape_.BlockFloats());
  }
  absl::StatusOr<CpuDevice::ThreadScratch> scratch = device.Scratch(floats * sizeof(float));
  if (!scratch.ok()) return scratch.status();
  device.pool().ParallelFor(static_cast<int64_t>(tiles_.size()), [&](int64_t i, int thread) {
    float* memory = reinterpret_cast<float*>(scratch->of(thread));
    RunWindow(tiles_[i], memory);
    if (params_.selection != nullptr) RunSparse(tiles_[i], memory);
  });
  return absl::OkStatus();
}

void Runner::WindowPointers(const Tile& tile, int64_t begin, int64_t lo, int64_t hi,
                            BlockKeys& out) const {
  const WindowKv& ring = params_.ring;
  const int64_t k_dim = ring.head_dim;
  const int64_t v_dim = ring.v_head_dim;
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(ring.dtype));
  const char* slab =
      static_cast<const char*>(ring.data) + batch_.slab_index[tile.seq] * ring.slab_stride_bytes;
  const int64_t step_begin = batch_.first_position[tile.seq];
  std::fill(std::begin(out.keys), std::end(out.keys), nullptr);
  std::fill(std::begin(out.values), std::end(out.values), nullptr);
  out.value_stride = 0;
  for (int64_t position = std::max(begin, lo); position < std::min(begin + kBlockTokens, hi);
       ++position) {
    const int64_t j = position - begin;
    if (position >= step_begin) {
      const int64_t row = batch_.row_begin[tile.seq] + (position - step_begin);
      out.keys[j] = params_.step_k.Columns(tile.kv_head * k_dim, k_dim).Rows(row, 1).data;
      out.values[j] = params_.step_v.Columns(tile.kv_head * v_dim, v_dim).Rows(row, 1).data;
    } else {
      const int64_t slot =
          static_cast<int64_t>(tile.kv_head) * ring.window + position % ring.window;
      out.keys[j] = slab + ring.k_offset_bytes + slot * k_dim * size;
      out.values[j] = slab + ring.v_offset_bytes + slot * v_dim * size;
    }
  }
}

void Runner::RunWindow(const Tile& tile, float* scratch) const {
  AttentionTile attention(simd_, window_shape_, tile.num_tokens, scratch);
  attention.LoadQueries(params_.q, FirstRow(tile), tile.kv_head, params_.scale);
  attention.ResetState();
  const int64_t first = FirstPosition(tile);
  const int64_t window = params_.ring.window;
  const int64_t key_begin = std::max<int64_t>(0, first - window + 1);
  const int64_t key_end = first + tile.num_tokens;
  BlockKeys pointers;
  for (int64_t block = key_begin / kBlockTokens * kBlockTokens; block < key_end;
       block += kBlockTokens) {
    WindowPointers(tile, block, key_begin, key_end, pointers);
    attention.SetBlock(pointers);
    if (block + kBlockTokens >= key_end) FetchFirstPage(tile, attention);
    int token = 0;
    while (token < tile.num_tokens) {
      const auto range = [&](int t) {
        const int64_t position = first + t;
        return std::pair<int64_t, int64_t>(
            std::max<int64_t>(0, position - window + 1 - block),
            std::min<int64_t>(kBlockTokens, position + 1 - block));
      };
      const auto [lo, hi] = range(token);
      int end = token + 1;
      while (end < tile.num_tokens && range(end) == std::pair(lo, hi)) ++end;
      if (lo < hi) {
        attention.Attend(token, end, static_cast<int>(lo), static_cast<int>(hi), nullptr, 0);
      }
      token = end;
    }
  }
  Finish(tile, attention, params_.window_sink, params_.window_gate, false);
}

void Runner::FetchFirstPage(const Tile& tile, AttentionTile& attention) const {
  if (params_.selection == nullptr) return;
  const int64_t place = FirstRow(tile) * params_.kv.num_kv_heads + tile.kv_head;
  const int64_t block = params_.selection[place * params_.selected_blocks];
  if (block < 0 || block * kBlockTokens > FirstPosition(tile)) return;
  BlockKeys pointers;
  PagePointers(params_.kv,
               batch_.page_table[int64_t{tile.seq} * batch_.page_table_stride + block],
               tile.kv_head, pointers);
  attention.SetNextBlock(pointers.keys[0], pointers.values[0]);
}

void Runner::RunSparse(const Tile& tile, float* scratch) const {
  AttentionTile attention(simd_, sparse_shape_, tile.num_tokens, scratch);
  attention.LoadQueries(params_.q, FirstRow(tile), tile.kv_head, params_.scale);
  attention.ResetState();
  const int64_t first = FirstPosition(tile);
  const int k = params_.selected_blocks;
  const int32_t* pages =
      batch_.page_table + static_cast<int64_t>(tile.seq) * batch_.page_table_stride;
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  const int32_t* lists[kTileTokens];  // what is left of each token's list
  int left[kTileTokens];
  int32_t head[kTileTokens];
  const auto load_head = [&](int token) {
    const bool valid = left[token] > 0 && *lists[token] >= 0 &&
                       int64_t{*lists[token]} * kBlockTokens <= first + token;
    head[token] = valid ? *lists[token] : kNone;
  };
  for (int token = 0; token < tile.num_tokens; ++token) {
    const int64_t place =
        (FirstRow(tile) + token) * params_.kv.num_kv_heads + tile.kv_head;
    lists[token] = params_.selection + place * k;
    left[token] = k;
    load_head(token);
  }
  struct Run {
    int begin = 0;
    int end = 0;
    int64_t visible = 0;  // keys of the block
  };
  Run runs[kTileTokens];
  BlockKeys pointers;
  int32_t block = *std::min_element(head, head + tile.num_tokens);
  if (block != kNone) PagePointers(params_.kv, pages[block], tile.kv_head, pointers);
  while (block != kNone) {
    // Neighbours that selected this block and see equally much of it go together.
    int num_runs = 0;
    for (int token = 0; token < tile.num_tokens; ++token) {
      if (head[token] != block) continue;
      const int64_t visible =
          std::min<int64_t>(kBlockTokens, first + token + 1 - int64_t{block} * kBlockTokens);
      if (num_runs > 0 && runs[num_runs - 1].end == token &&
          runs[num_runs - 1].visible == visible) {
        ++runs[num_runs - 1].end;
      } else {
        runs[num_runs++] = {token, token + 1, visible};
      }
      ++lists[token];
      --left[token];
      load_head(token);
    }
    attention.SetBlock(pointers);
    block = *std::min_element(head, head + tile.num_tokens);
    if (block != kNone) {
      PagePointers(params_.kv, pages[block], tile.kv_head, pointers);
      attention.SetNextBlock(pointers.keys[0], pointers.values[0]);
    }
    for (int i = 0; i < num_runs; ++i) {
      attention.Attend(runs[i].begin, runs[i].end, 0, static_cast<int>(runs[i].visible), nullptr,
                       0);
    }
  }
  Finish(tile, attention, params_.sparse_sink, params_.sparse_gate, true);
}

void Runner::Finish(const Tile& tile, const AttentionTile& attention, const float* sink,
                    const TensorView& gate, bool accumulate) const {
  const TileShape& shape = attention.shape();
  const SoftmaxState& state = attention.state();
  const int64_t v_dim = shape.v_head_dim;
  std::vector<float> ordered(shape.v_cols());
  const bool gate_per_head = !gate.empty() && gate.cols == params_.num_heads;
  for (int token = 0; token < tile.num_tokens; ++token) {
    const int64_t row = FirstRow(tile) + token;
    for (int h = 0; h < shape.heads; ++h) {
      const int64_t r = static_cast<int64_t>(token) * shape.heads + h;
      const int64_t head = static_cast<int64_t>(tile.kv_head) * shape.heads + h;
      float factor = 0;
      if (sink == nullptr) {
        factor = state.sum[r] > 0 ? 1.0f / state.sum[r] : 0.0f;
      } else {
        const float max = std::max(state.max[r], sink[head]);
        const float shrink = std::exp(state.max[r] - max);
        factor = shrink / (state.sum[r] * shrink + std::exp(sink[head] - max));
      }
      const float* element_gate = nullptr;
      if (gate_per_head) {
        factor *= 1.0f / (1.0f + std::exp(-gate.Row<const float>(row)[head]));
      } else if (!gate.empty()) {
        element_gate = gate.Row<const float>(row) + head * v_dim;
      }
      const float* columns =
          OrderedColumns(simd_, shape, state.out + r * shape.v_cols(), ordered.data());
      simd_.gated(columns, factor, element_gate, accumulate,
                  params_.out.Row<float>(row) + head * v_dim, v_dim);
    }
  }
}

}  // namespace

absl::Status WindowSparseAttention(CpuDevice& device, const WindowSparseAttentionParams& params) {
  return Runner(KernelsOf(device), params).Run(device);
}

}  // namespace hyserve::kernels::cpu
