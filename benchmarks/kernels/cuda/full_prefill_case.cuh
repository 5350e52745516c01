// A paged attention problem on the GPU for the prefill benchmark: random tensors, scrambled pages,
// NaN wherever no row may look, and a plain f32 reference.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_CASE_CUH_
#define HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_CASE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/full_attention_prefill_plan.h"
#include "engine/kernels/cuda/select_blocks_prefill.h"

namespace hyserve::bench {

struct HeadShape {
  int heads, kv_heads, dim, v_dim;
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
};

struct SequenceShape {
  int rows, first_position;
};

// Overwrites keys and values of one page from token on with NaN.
static __global__ void PoisonPage(__nv_bfloat16* page, int first_token, HeadShape shape) {
  const __nv_bfloat16 nan = __float2bfloat16(__int_as_float(0x7fffffff));
  for (int h = 0; h < shape.kv_heads; ++h) {
    for (int t = first_token; t < 64; ++t) {
      for (int d = threadIdx.x; d < shape.dim; d += blockDim.x) {
        page[(h * 64 + t) * shape.dim + d] = nan;
      }
      for (int d = threadIdx.x; d < shape.v_dim; d += blockDim.x) {
        page[shape.kv_heads * 64 * shape.dim + (h * 64 + t) * shape.v_dim + d] = nan;
      }
    }
  }
}

class PrefillCase {
 public:
  PrefillCase(HeadShape shape, std::vector<SequenceShape> sequences, int padding, uint32_t seed)
      : shape_(shape), sequences_(std::move(sequences)) {
    q_stride_ = shape.heads * shape.dim + padding;
    out_stride_ = shape.heads * shape.v_dim + padding;
    int max_blocks = 0;
    for (const SequenceShape& s : sequences_) {
      rows_ += s.rows;
      const int blocks = (s.first_position + s.rows + 63) / 64;
      total_blocks_ += blocks;
      max_blocks = std::max(max_blocks, blocks);
    }
    table_stride_ = max_blocks + 3;
    num_blocks_ = total_blocks_ + 5;
    slice_elements_ = int64_t{64} * shape.kv_heads * (shape.dim + shape.v_dim);
    q_ = DeviceArray<__nv_bfloat16>(rows_ * q_stride_);
    out_ = DeviceArray<__nv_bfloat16>(rows_ * out_stride_);
    kv_ = DeviceArray<__nv_bfloat16>(num_blocks_ * slice_elements_);
    FillRandom(q_, rows_ * q_stride_, seed, 1.0f);
    FillRandom(kv_, num_blocks_ * slice_elements_, seed + 1, 1.0f);
    // Pages in random order; what is past a sequence's end, and unused pages, are NaN. Entries of
    // the table past the end point outside the pool.
    std::vector<int32_t> ids(num_blocks_);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937_64(seed));
    std::vector<int32_t> table(sequences_.size() * table_stride_, 0x7fffffff);
    size_t next = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int context = sequences_[s].first_position + sequences_[s].rows;
      for (int b = 0; b < (context + 63) / 64; ++b) table[s * table_stride_ + b] = ids[next++];
      if (context % 64 != 0) {
        PoisonPage<<<1, 256>>>(kv_ + ids[next - 1] * slice_elements_, context % 64, shape);
      }
    }
    for (; next < ids.size(); ++next) {
      PoisonPage<<<1, 256>>>(kv_ + ids[next] * slice_elements_, 0, shape);
    }
    table_ = DeviceArray<int32_t>(table.size());
    BENCH_CHECK(cudaMemcpy(table_, table.data(), table.size() * 4, cudaMemcpyHostToDevice));
    counter_ = DeviceArray<int>(1);
    BENCH_CHECK(cudaDeviceSynchronize());
  }
  ~PrefillCase() {
    for (void* p : std::initializer_list<void*>{q_, out_, kv_, table_, counter_, raw_, lse_,
                                                selection_, scores_}) {
      cudaFree(p);
    }
  }
  PrefillCase(const PrefillCase&) = delete;

  // Prepares launches. pieces: every sequence is cut into that many calls' worth of rows.
  void Plan(bool with_scores, int selected, bool want_scores, int num_sms, int64_t score_bytes,
            int pieces = 1) {
    std::vector<kernels::cuda::PrefillSequence> rows;
    int first = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int n = sequences_[s].rows;
      for (int p = 0; p < pieces; ++p) {
        const int begin = n * p / pieces, end = n * (p + 1) / pieces;
        if (end > begin) {
          rows.push_back({first + begin, end - begin, sequences_[s].first_position + begin,
                          static_cast<int32_t>(s)});
        }
      }
      first += n;
    }
    selected_ = selected;
    steps_ = kernels::cuda::PlanPrefill(
        rows, {shape_.heads, shape_.heads / shape_.kv_heads, 2 * (shape_.dim + shape_.v_dim),
               num_sms, with_scores, score_bytes});
    int64_t raw = 0, lse = 0;
    for (const auto& step : steps_) {
      raw = std::max(raw, step.score_elements);
      lse = std::max(lse, step.lse_elements);
    }
    cudaFree(raw_);
    cudaFree(lse_);
    cudaFree(selection_);
    cudaFree(scores_);
    raw_ = lse_ = scores_ = nullptr;
    selection_ = nullptr;
    scores_stride_ = 0;
    if (with_scores) {
      raw_ = DeviceArray<float>(raw);
      lse_ = DeviceArray<float>(lse);
      BENCH_CHECK(cudaMemset(raw_, 0xff, raw * 4));
      selection_ = DeviceArray<int32_t>(int64_t{rows_} * shape_.kv_heads * selected);
      BENCH_CHECK(cudaMemset(selection_, 0x7f, int64_t{rows_} * shape_.kv_heads * selected * 4));
      if (want_scores) {
        scores_stride_ = table_stride_;
        scores_ = DeviceArray<float>(int64_t{rows_} * shape_.kv_heads * scores_stride_);
      }
    }
  }

  template <typename LaunchAttention>
  void Run(LaunchAttention&& attention, int num_sms, bool select = true) const {
    for (const auto& step : steps_) {
      kernels::cuda::PrefillLaunch launch;
      BENCH_CHECK(EncodePrefillMaps({q_, rows_, q_stride_, shape_.heads, kv_, num_blocks_,
                                     shape_.kv_heads, shape_.dim, shape_.v_dim},
                                    &launch));
      std::copy(step.segments.begin(), step.segments.end(), launch.segments);
      launch.num_segments = static_cast<int>(step.segments.size());
      launch.num_tiles = step.num_tiles;
      launch.num_heads = shape_.heads;
      launch.heads_per_group = shape_.heads / shape_.kv_heads;
      launch.scale = shape_.scale();
      launch.page_table = table_;
      launch.page_table_stride = table_stride_;
      launch.out = out_;
      launch.out_row_stride = out_stride_;
      launch.raw_scores = raw_;
      launch.lse = lse_;
      launch.tile_counter = counter_;
      BENCH_CHECK(attention(launch));
      if (raw_ == nullptr || !select) continue;
      kernels::cuda::SelectBlocksLaunch selection;
      std::copy(step.segments.begin(), step.segments.end(), selection.segments);
      selection.num_segments = launch.num_segments;
      selection.num_kv_heads = shape_.kv_heads;
      selection.heads_per_group = launch.heads_per_group;
      selection.scale = launch.scale;
      selection.raw_scores = raw_;
      selection.lse = lse_;
      selection.selection = selection_;
      selection.selected_blocks = selected_;
      selection.block_scores = scores_;
      selection.scores_stride = scores_stride_;
      BENCH_CHECK(LaunchSelectBlocks(selection, num_sms, nullptr));
    }
  }

  const HeadShape& shape() const { return shape_; }
  const std::vector<SequenceShape>& sequences() const { return sequences_; }
  int rows() const { return rows_; }
  int selected() const { return selected_; }
  int num_steps() const { return static_cast<int>(steps_.size()); }
  const __nv_bfloat16* q() const { return q_; }
  int64_t q_stride() const { return q_stride_; }
  __nv_bfloat16* out() const { return out_; }
  int64_t out_stride() const { return out_stride_; }
  const __nv_bfloat16* kv() const { return kv_; }
  const int32_t* table() const { return table_; }
  int table_stride() const { return table_stride_; }
  int32_t* selection() const { return selection_; }
  float* scores() const { return scores_; }
  int64_t scores_stride() const { return scores_stride_; }
  // Floating-point operations of the visible part.
  double Flops() const {
    double pairs = 0;
    for (const SequenceShape& s : sequences_) {
      pairs += static_cast<double>(s.rows) * (s.first_position + 0.5 * (s.rows + 1));
    }
    return 2.0 * pairs * shape_.heads * (shape_.dim + shape_.v_dim);
  }

 private:
  HeadShape shape_;
  std::vector<SequenceShape> sequences_;
  int rows_ = 0, total_blocks_ = 0, table_stride_ = 0, selected_ = 0;
  int64_t num_blocks_ = 0, slice_elements_ = 0, q_stride_ = 0, out_stride_ = 0;
  int64_t scores_stride_ = 0;
  __nv_bfloat16 *q_ = nullptr, *out_ = nullptr, *kv_ = nullptr;
  int32_t *table_ = nullptr, *selection_ = nullptr;
  int* counter_ = nullptr;
  float *raw_ = nullptr, *lse_ = nullptr, *scores_ = nullptr;
  std::vector<kernels::cuda::PrefillStep> steps_;
};

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_CASE_CUH_
