// Attention of sampled rows in f32, straight from the definition, and the comparison with a
// kernel's results. For the prefill benchmark.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_REFERENCE_CUH_
#define HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_REFERENCE_CUH_

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "benchmarks/kernels/cuda/full_prefill_case.cuh"

namespace hyserve::bench {

struct SampleRow {
  int row, sequence, position;
};

// One thread block per (sample, head). logits: scratch [samples, heads, stride].
static __global__ void ReferenceRows(const SampleRow* samples, HeadShape shape, float scale,
                                     const __nv_bfloat16* q, int64_t q_stride,
                                     const __nv_bfloat16* kv, const int32_t* table,
                                     int table_stride, float* logits, int64_t stride, float* out,
                                     float* block_scores, int blocks_stride) {
  __shared__ float query[256];
  __shared__ float reduce[256];
  const SampleRow sample = samples[blockIdx.x];
  const int head = blockIdx.y;
  const int kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t item = blockIdx.x * int64_t{shape.heads} + head;
  const int keys = sample.position + 1;
  const int64_t slice = int64_t{64} * shape.kv_heads * (shape.dim + shape.v_dim);
  const int32_t* pages = table + int64_t{sample.sequence} * table_stride;
  float* row_logits = logits + item * stride;
  for (int d = threadIdx.x; d < shape.dim; d += blockDim.x) {
    query[d] = __bfloat162float(q[sample.row * q_stride + head * shape.dim + d]);
  }
  __syncthreads();
  float max = -INFINITY;
  for (int j = threadIdx.x; j < keys; j += blockDim.x) {
    const __nv_bfloat16* k = kv + pages[j / 64] * slice + (kv_head * 64 + j % 64) * shape.dim;
    float dot = 0;
    for (int d = 0; d < shape.dim; ++d) dot += query[d] * __bfloat162float(k[d]);
    row_logits[j] = scale * dot;
    max = fmaxf(max, scale * dot);
  }
  const auto block_reduce = [&](float x, bool is_max) {
    reduce[threadIdx.x] = x;
    __syncthreads();
    for (int n = blockDim.x / 2; n > 0; n /= 2) {
      if (static_cast<int>(threadIdx.x) < n) {
        const float y = reduce[threadIdx.x + n];
        reduce[threadIdx.x] = is_max ? fmaxf(reduce[threadIdx.x], y) : reduce[threadIdx.x] + y;
      }
      __syncthreads();
    }
    const float result = reduce[0];
    __syncthreads();
    return result;
  };
  max = block_reduce(max, true);
  float sum = 0;
  for (int j = threadIdx.x; j < keys; j += blockDim.x) sum += expf(row_logits[j] - max);
  const float lse = max + logf(block_reduce(sum, false));
  for (int b = threadIdx.x; b * 64 < keys; b += blockDim.x) {
    float best = -INFINITY;
    for (int j = b * 64; j < min(keys, b * 64 + 64); ++j) best = fmaxf(best, row_logits[j]);
    block_scores[item * blocks_stride + b] = best - lse;
  }
  for (int d = threadIdx.x; d < shape.v_dim; d += blockDim.x) {
    float o = 0;
    for (int j = 0; j < keys; ++j) {
      const __nv_bfloat16* v = kv + pages[j / 64] * slice +
                               int64_t{64} * shape.kv_heads * shape.dim +
                               (kv_head * 64 + j % 64) * shape.v_dim;
      o += expf(row_logits[j] - lse) * __bfloat162float(v[d]);
    }
    out[item * shape.v_dim + d] = o;
  }
}

struct Comparison {
  double out_error = 0;        // |out - reference| / |reference| over the sampled rows
  double score_error = 0;      // largest difference of a block score
  int64_t wrong_rank = 0;      // selections that are not the exact top of the kernel's own scores
  int64_t other_selection = 0; // differ from the reference's beyond a score gap of 1e-4
  bool ok = true;
};

class PrefillReference {
 public:
  PrefillReference(const PrefillCase& test, int max_samples) : test_(test) {
    const HeadShape& shape = test.shape();
    int first = 0, longest = 0;
    std::vector<SampleRow> all;
    for (size_t s = 0; s < test.sequences().size(); ++s) {
      for (int i = 0; i < test.sequences()[s].rows; ++i) {
        all.push_back({first + i, static_cast<int>(s), test.sequences()[s].first_position + i});
        longest = std::max(longest, all.back().position + 1);
      }
      first += test.sequences()[s].rows;
    }
    const double step = std::max(1.0, static_cast<double>(all.size()) / max_samples);
    for (double at = all.size() - 1; at >= 0; at -= step) {
      samples_.push_back(all[static_cast<size_t>(at)]);
    }
    blocks_ = (longest + 63) / 64;
    const int64_t items = static_cast<int64_t>(samples_.size()) * shape.heads;
    auto* samples = DeviceArray<SampleRow>(samples_.size());
    BENCH_CHECK(cudaMemcpy(samples, samples_.data(), samples_.size() * sizeof(SampleRow),
                           cudaMemcpyHostToDevice));
    float* logits = DeviceArray<float>(items * longest);
    float* out = DeviceArray<float>(items * shape.v_dim);
    float* scores = DeviceArray<float>(items * blocks_);
    ReferenceRows<<<dim3(samples_.size(), shape.heads), 256>>>(
        samples, shape, shape.scale(), test.q(), test.q_stride(), test.kv(), test.table(),
        test.table_stride(), logits, longest, out, scores, blocks_);
    BENCH_CHECK(cudaDeviceSynchronize());
    out_ = Download(out, items * shape.v_dim);
    scores_ = Download(scores, items * blocks_);
    for (void* p : std::initializer_list<void*>{samples, logits, out, scores}) cudaFree(p);
  }

  Comparison Compare() const {
    const HeadShape& shape = test_.shape();
    Comparison result;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < samples_.size(); ++i) {
      const auto row = Download(test_.out() + samples_[i].row * test_.out_stride(),
                                shape.heads * shape.v_dim);
      for (int c = 0; c < shape.heads * shape.v_dim; ++c) {
        const double expected = out_[i * shape.heads * shape.v_dim + c];
        const double error = __bfloat162float(row[c]) - expected;
        difference += error * error;
        norm += expected * expected;
      }
    }
    result.out_error = std::sqrt(difference / norm);
    result.ok = result.out_error < 6e-3;
    if (test_.scores() != nullptr) CompareScores(&result);
    return result;
  }

 private:
  void CompareScores(Comparison* result) const {
    const HeadShape& shape = test_.shape();
    const int group = shape.heads / shape.kv_heads, selected = test_.selected();
    for (size_t i = 0; i < samples_.size(); ++i) {
      const int visible = samples_[i].position / 64 + 1;
      for (int g = 0; g < shape.kv_heads; ++g) {
        const int64_t item = samples_[i].row * int64_t{shape.kv_heads} + g;
        const auto got = Download(test_.scores() + item * test_.scores_stride(),
                                  test_.scores_stride());
        const auto chosen = Download(test_.selection() + item * selected, selected);
        std::vector<float> expected(visible, -INFINITY);
        for (int b = 0; b < visible; ++b) {
          for (int h = g * group; h < (g + 1) * group; ++h) {
            expected[b] = std::max(expected[b], scores_[(i * shape.heads + h) * blocks_ + b]);
          }
          const double error = std::abs(expected[b] - got[b]);
          result->score_error = std::max(result->score_error, error);
          if (!(error < 1e-3)) result->ok = false;
        }
        for (size_t b = visible; b < got.size(); ++b) {
          if (got[b] != -INFINITY) result->ok = false;
        }
        const std::vector<int32_t> exact = Top(got, visible, selected);
        if (exact != chosen) {
          ++result->wrong_rank;
          result->ok = false;
        }
        // Where the reference would choose otherwise, the scores must be within rounding.
        const std::vector<int32_t> other = Top(expected, visible, selected);
        for (int32_t b : chosen) {
          if (b < 0 || std::find(other.begin(), other.end(), b) != other.end()) continue;
          float lowest = INFINITY;
          for (int32_t o : other) lowest = std::min(lowest, expected[o]);
          if (expected[b] < lowest - 1e-4f) {
            ++result->other_selection;
            result->ok = false;
          }
        }
      }
    }
  }

  static std::vector<int32_t> Top(const std::vector<float>& scores, int visible, int count) {
    std::vector<int32_t> order(visible);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(visible, count));
    std::sort(order.begin(), order.end());
    order.resize(count, -1);
    return order;
  }

  const PrefillCase& test_;
  std::vector<SampleRow> samples_;
  int blocks_ = 0;
  std::vector<float> out_, scores_;
};

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_PREFILL_REFERENCE_CUH_
