// Random paged caches and queries for the split-attention kernels, and a plain reference of them.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_DECODE_CASE_CUH_
#define HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_DECODE_CASE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/full_attention_decode.h"
#include "engine/kernels/cuda/full_attention_generic.h"
#include "engine/kernels/cuda/select_blocks_decode.h"

namespace hyserve::kernels::cuda::bench {

// Device memory of one element type, freed with its owner.
template <typename T>
class OwnedArray {
 public:
  explicit OwnedArray(int64_t count)
      : data_(hyserve::bench::DeviceArray<T>(count)), count_(count) {}
  explicit OwnedArray(const std::vector<T>& values) : OwnedArray(values.size()) {
    BENCH_CHECK(
        cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  OwnedArray(const OwnedArray&) = delete;
  ~OwnedArray() { cudaFree(data_); }
  T* get() const { return data_; }
  int64_t count() const { return count_; }
  std::vector<T> Download() const { return hyserve::bench::Download(data_, count_); }
  void Fill(int byte) { BENCH_CHECK(cudaMemset(data_, byte, count_ * sizeof(T))); }

 private:
  T* const data_;
  const int64_t count_;
};

// NaN for the tokens of a sequence's last page that are beyond its context.
static __global__ void PoisonKernel(__nv_bfloat16* pages, const int32_t* last_page,
                                    const int32_t* tokens, int kv_heads, int dim, int v_dim) {
  __nv_bfloat16* slice =
      pages + int64_t{last_page[blockIdx.x]} * kv_heads * kPageTokens * (dim + v_dim);
  const int64_t keys = int64_t{kv_heads} * kPageTokens * dim;
  const int64_t all = keys + int64_t{kv_heads} * kPageTokens * v_dim;
  for (int64_t i = threadIdx.x; i < all; i += blockDim.x) {
    const int token = i < keys ? i / dim % kPageTokens : (i - keys) / v_dim % kPageTokens;
    if (token >= tokens[blockIdx.x]) slice[i] = __float2bfloat16(NAN);
  }
}

struct Sequence {
  int context = 0;  // tokens, the rows of the step included
  int rows = 1;
};

struct Shape {
  int heads = 0;
  int kv_heads = 0;
  int dim = 0;
  int v_dim = 0;
  std::string Name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + " " + std::to_string(dim) +
           "/" + std::to_string(v_dim);
  }
};

// `copies`: sets of pages of the same content layout, so that repeated runs need not find pages in
// L2.
class DecodeCase {
 public:
  DecodeCase(const Shape& shape, std::vector<Sequence> sequences, int selected, int copies = 1,
             bool one_page = false)
      : shape_(shape),
        sequences_(std::move(sequences)),
        selected_(selected),
        copies_(copies),
        plan_(Plan(one_page)),
        pages_(int64_t{plan_.num_pages} * PageElements()),
        q_(int64_t{plan_.num_rows} * QStride()),
        row_begin_(plan_.row_begin),
        first_position_(plan_.first_position),
        page_table_(plan_.page_table),
        out_(int64_t{plan_.num_rows} * OutStride()),
        selection_(int64_t{plan_.num_rows} * shape.kv_heads * selected),
        scores_(int64_t{plan_.num_rows} * shape.kv_heads * ScoresStride()) {
    hyserve::bench::FillRandom(pages_.get(), pages_.count(), 1, 1.0f);
    hyserve::bench::FillRandom(q_.get(), q_.count(), 2, 1.5f);
    if (!one_page) {
      OwnedArray<int32_t> last(plan_.last_pages), tokens(plan_.last_tokens);
      PoisonKernel<<<static_cast<int>(plan_.last_pages.size()), 256>>>(
          pages_.get(), last.get(), tokens.get(), shape.kv_heads, shape.dim, shape.v_dim);
      BENCH_CHECK(cudaDeviceSynchronize());
    }
    BENCH_CHECK(cudaGetLastError());
    BENCH_CHECK(cudaDeviceSynchronize());
  }

  SplitAttentionArgs Args(int copy, bool with_selection, bool with_scores) const {
    SplitAttentionArgs args;
    args.q = q_.get();
    args.q_stride = QStride();
    args.out = out_.get();
    args.out_stride = OutStride();
    args.pages = pages_.get();
    args.num_blocks = plan_.num_pages;
    args.num_heads = shape_.heads;
    args.num_kv_heads = shape_.kv_heads;
    args.head_dim = shape_.dim;
    args.v_head_dim = shape_.v_dim;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim));
    args.row_begin = row_begin_.get();
    args.first_position = first_position_.get();
    args.page_table_stride = plan_.stride;
    args.page_table = page_table_.get() + int64_t{copy % copies_} * plan_.stride * NumSequences();
    args.num_sequences = NumSequences();
    args.row_limit = INT32_MAX;
    args.window_rows = plan_.max_rows;
    SetMost(args);
    args.selection = with_selection ? selection_.get() : nullptr;
    args.selected_blocks = selected_;
    args.block_scores = with_scores ? scores_.get() : nullptr;
    args.scores_stride = ScoresStride();
    return args;
  }

  // Once more after a change of the window.
  void SetMost(SplitAttentionArgs& args) const {
    args.max_pages = 0;
    args.max_splits = 0;
    for (int s = 0; s < NumSequences(); ++s) {
      const SequencePart part =
          PartOf(args, plan_.row_begin[s], plan_.row_begin[s + 1], plan_.first_position[s]);
      if (part.rows == 0) continue;
      args.max_pages = std::max(args.max_pages, part.pages);
      args.max_splits = std::max(args.max_splits, part.splits());
    }
  }
  SplitSize Size(const SplitAttentionArgs& args, int tile_rows) const {
    SplitSize size;
    for (int s = 0; s < NumSequences(); ++s) {
      const SequencePart part =
          PartOf(args, plan_.row_begin[s], plan_.row_begin[s + 1], plan_.first_position[s]);
      size.Add(part, part.splits(), shape_.kv_heads, shape_.heads / shape_.kv_heads, tile_rows);
    }
    return size;
  }

  const Shape& shape() const { return shape_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }
  int NumSequences() const { return static_cast<int>(sequences_.size()); }
  int max_pages() const { return plan_.stride; }
  int selected() const { return selected_; }
  // With padding, so that no kernel may take rows for dense; even, as in the engine.
  int64_t QStride() const { return int64_t{shape_.heads} * shape_.dim + 8; }
  int64_t OutStride() const { return int64_t{shape_.heads} * shape_.v_dim + 8; }
  int64_t ScoresStride() const { return plan_.stride + 3; }
  int64_t PageElements() const {
    return int64_t{shape_.kv_heads} * kPageTokens * (shape_.dim + shape_.v_dim);
  }
  void PoisonOutputs() {
    out_.Fill(0xff);
    selection_.Fill(0xee);
    scores_.Fill(0xff);
  }
  std::vector<__nv_bfloat16> Out() const { return out_.Download(); }
  std::vector<int32_t> Selection() const { return selection_.Download(); }
  std::vector<float> Scores() const { return scores_.Download(); }
  int RowOf(int sequence) const { return plan_.row_begin[sequence]; }

 private:
  struct Layout {
    int num_rows = 0;
    int max_rows = 0;
    int stride = 0;
    int num_pages = 0;
    std::vector<int32_t> row_begin, first_position, page_table, last_pages, last_tokens;
  };

  Layout Plan(bool one_page) const {
    Layout plan;
    plan.row_begin.push_back(0);
    int64_t total = 0;
    for (const Sequence& s : sequences_) {
      plan.num_rows += s.rows;
      plan.max_rows = std::max(plan.max_rows, s.rows);
      plan.row_begin.push_back(plan.num_rows);
      plan.first_position.push_back(s.context - s.rows);
      const int pages = CeilDivide(s.context, kPageTokens);
      plan.stride = std::max(plan.stride, pages);
      total += pages;
    }
    plan.num_pages = static_cast<int>(total * copies_);
    std::vector<int32_t> order(plan.num_pages);
    for (int i = 0; i < plan.num_pages; ++i) order[i] = i;
    std::mt19937 random(5);
    std::shuffle(order.begin(), order.end(), random);
    plan.page_table.assign(int64_t{copies_} * NumSequences() * plan.stride, -1);
    int next = 0;
    for (int copy = 0; copy < copies_; ++copy) {
      for (int s = 0; s < NumSequences(); ++s) {
        const int pages = CeilDivide(sequences_[s].context, kPageTokens);
        for (int i = 0; i < pages; ++i) {
          plan.page_table[(int64_t{copy} * NumSequences() + s) * plan.stride + i] =
              one_page ? 0 : order[next];
          ++next;
        }
        plan.last_pages.push_back(order[next - 1]);
        plan.last_tokens.push_back((sequences_[s].context - 1) % kPageTokens + 1);
      }
    }
    return plan;
  }

  const Shape shape_;
  const std::vector<Sequence> sequences_;
  const int selected_;
  const int copies_;
  const Layout plan_;
  OwnedArray<__nv_bfloat16> pages_;
  OwnedArray<__nv_bfloat16> q_;
  OwnedArray<int32_t> row_begin_;
  OwnedArray<int32_t> first_position_;
  OwnedArray<int32_t> page_table_;
  OwnedArray<__nv_bfloat16> out_;
  OwnedArray<int32_t> selection_;
  OwnedArray<float> scores_;
};

// ---- Reference ----------------------------------------------------------------------------------

// One block per (row, head); logits: [rows, heads, stride * 64] scratch; sums in double: out, block
// maxima of scale q . k and LSE.
static __global__ void ReferenceKernel(SplitAttentionArgs args, int first_row, float* logits,
                                       int64_t logit_stride, float* out, float* block_max,
                                       float* lse) {
  const int row = first_row + blockIdx.x / args.num_heads;
  const int head = blockIdx.x % args.num_heads;
  int sequence = 0;
  while (args.row_begin[sequence + 1] <= row) ++sequence;
  const int position = args.first_position[sequence] + row - args.row_begin[sequence];
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const int32_t* table = args.page_table + int64_t{sequence} * args.page_table_stride;
  const auto* pages = static_cast<const __nv_bfloat16*>(args.pages);
  const int64_t slice =
      int64_t{args.num_kv_heads} * kPageTokens * (args.head_dim + args.v_head_dim);
  const auto* q = static_cast<const __nv_bfloat16*>(args.q) + row * args.q_stride +
                  int64_t{head} * args.head_dim;
  float* logit = logits + int64_t{blockIdx.x} * logit_stride;
  for (int key = threadIdx.x; key <= position; key += blockDim.x) {
    const __nv_bfloat16* k = pages + table[key / 64] * slice +
                             (int64_t{kv_head} * 64 + key % 64) * args.head_dim;
    double sum = 0;
    for (int d = 0; d < args.head_dim; ++d) {
      sum += static_cast<double>(__bfloat162float(q[d])) * __bfloat162float(k[d]);
    }
    logit[key] = static_cast<float>(sum * args.scale);
  }
  __syncthreads();
  __shared__ double shared[256];
  float largest = -INFINITY;
  for (int key = threadIdx.x; key <= position; key += blockDim.x) {
    largest = fmaxf(largest, logit[key]);
  }
  shared[threadIdx.x] = largest;
  __syncthreads();
  for (int i = 0; i < blockDim.x; ++i) largest = fmaxf(largest, static_cast<float>(shared[i]));
  __syncthreads();
  double sum = 0;
  for (int key = threadIdx.x; key <= position; key += blockDim.x) {
    sum += exp(static_cast<double>(logit[key]) - largest);
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < blockDim.x; ++i) total += shared[i];
  if (threadIdx.x == 0) lse[blockIdx.x] = static_cast<float>(largest + log(total));
  const int blocks = position / 64 + 1;
  for (int b = threadIdx.x; b < args.page_table_stride; b += blockDim.x) {
    float m = -INFINITY;
    for (int key = b * 64; b < blocks && key <= min(position, b * 64 + 63); ++key) {
      m = fmaxf(m, logit[key]);
    }
    block_max[int64_t{blockIdx.x} * args.page_table_stride + b] = m;
  }
  for (int d = threadIdx.x; d < args.v_head_dim; d += blockDim.x) {
    double value = 0;
    for (int key = 0; key <= position; ++key) {
      const __nv_bfloat16* v = pages + table[key / 64] * slice +
                               int64_t{args.num_kv_heads} * 64 * args.head_dim +
                               (int64_t{kv_head} * 64 + key % 64) * args.v_head_dim;
      value += exp(static_cast<double>(logit[key]) - largest) * __bfloat162float(v[d]);
    }
    out[int64_t{blockIdx.x} * args.v_head_dim + d] = static_cast<float>(value / total);
  }
}

}  // namespace hyserve::kernels::cuda::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CUDA_FULL_DECODE_CASE_CUH_
