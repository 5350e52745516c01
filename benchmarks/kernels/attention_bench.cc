#include "benchmarks/kernels/attention_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/kernels/bench_data.h"
#include "engine/kernels/attention_batch.h"
#include "engine/kernels/ops.h"

namespace hyserve::bench {
namespace {

using kernels::AttentionBatch;
using tensor::DType;

struct Shape {
  int heads, kv_heads, head_dim, v_head_dim;
};

constexpr int kBlock = 64;
constexpr int kSelected = 16;
constexpr int kWindow = 128;

// num_seqs sequences, each at the same context, with their last num_rows rows in the step.
class Step {
 public:
  Step(const Shape& shape, int num_seqs, int context, int num_rows)
      : shape_(shape),
        context_(context),
        blocks_((context + kBlock - 1) / kBlock),
        rows_(num_seqs * num_rows),
        slice_(int64_t{shape.kv_heads} * kBlock * (shape.head_dim + shape.v_head_dim)),
        pages_(int64_t{num_seqs} * blocks_, slice_, DType::kBF16, 1),
        ring_(num_seqs, int64_t{shape.kv_heads} * kWindow * (shape.head_dim + shape.v_head_dim),
              DType::kBF16, 2),
        step_k_(rows_, shape.kv_heads * shape.head_dim, DType::kBF16, 3),
        step_v_(rows_, shape.kv_heads * shape.v_head_dim, DType::kBF16, 4),
        q_(rows_, shape.heads * shape.head_dim, DType::kF32, 5),
        gate_(rows_, shape.heads, DType::kF32, 6),
        out_(rows_, shape.heads * shape.v_head_dim, DType::kF32, 7),
        selection_(int64_t{rows_} * shape.kv_heads * kSelected) {
    row_begin_.push_back(0);
    page_table_.resize(num_seqs * blocks_);
    std::iota(page_table_.begin(), page_table_.end(), 0);
    std::mt19937_64 engine(8);
    std::shuffle(page_table_.begin(), page_table_.end(), engine);
    for (int s = 0; s < num_seqs; ++s) {
      row_begin_.push_back((s + 1) * num_rows);
      first_position_.push_back(context - num_rows);
      slab_index_.push_back(s);
      for (int i = 0; i < num_rows; ++i) {
        positions_.push_back(context - num_rows + i);
        row_seq_.push_back(s);
      }
    }
    batch_ = {.num_seqs = num_seqs,
              .num_rows = rows_,
              .max_rows_per_seq = num_rows,
              .max_context = context,
              .row_begin = row_begin_.data(),
              .first_position = first_position_.data(),
              .positions = positions_.data(),
              .row_seq = row_seq_.data(),
              .device_row_begin = row_begin_.data(),
              .device_first_position = first_position_.data(),
              .page_table = page_table_.data(),
              .page_table_stride = blocks_,
              .slab_index = slab_index_.data()};
  }

  int rows() const { return rows_; }

  void RunFull(tensor::CpuDevice& device) {
    Must(kernels::FullAttention(device, {.q = q_.view(),
                                         .out = out_.view(),
                                         .num_heads = shape_.heads,
                                         .scale = Scale(),
                                         .batch = &batch_,
                                         .kv = Pages(),
                                         .selection = selection_.data(),
                                         .selected_blocks = kSelected}));
  }

  void RunSparse(tensor::CpuDevice& device) {
    const int64_t k_bytes = int64_t{shape_.kv_heads} * kWindow * shape_.head_dim * 2;
    kernels::WindowSparseAttentionParams params;
    params.q = q_.view();
    params.out = out_.view();
    params.num_heads = shape_.heads;
    params.scale = Scale();
    params.batch = &batch_;
    params.ring = {ring_.data(), DType::kBF16,
                   int64_t{shape_.kv_heads} * kWindow * (shape_.head_dim + shape_.v_head_dim) * 2,
                   0, k_bytes, kWindow, shape_.kv_heads, shape_.head_dim, shape_.v_head_dim};
    params.step_k = step_k_.view();
    params.step_v = step_v_.view();
    params.window_gate = gate_.view();
    params.kv = Pages();
    params.selection = selection_.data();
    params.selected_blocks = kSelected;
    params.sparse_gate = gate_.view();
    Must(kernels::WindowSparseAttention(device, params));
  }

  // The last row's first head after RunFull, by plain loops.
  void CheckFull() const {
    std::vector<double> logits;
    double largest = -1e30;
    for (int t = 0; t < context_; ++t) {
      double dot = 0;
      for (int d = 0; d < shape_.head_dim; ++d) {
        dot += double{q_.At(rows_ - 1, d)} * double{PageValue(t, d, true)};
      }
      logits.push_back(dot * Scale());
      largest = std::max(largest, logits.back());
    }
    double sum = 0;
    for (double& logit : logits) sum += logit = std::exp(logit - largest);
    for (int d = 0; d < shape_.v_head_dim; ++d) {
      double want = 0;
      for (int t = 0; t < context_; ++t) want += logits[t] / sum * PageValue(t, d, false);
      CheckNear(out_.At(rows_ - 1, d), want, 1e-4, "FullAttention");
    }
  }

  // Both branches of the last row's first head after RunFull and RunSparse, by plain loops over the
  // selection that RunFull left.
  void CheckSparse() const {
    double out[2][512] = {};
    for (int branch : {0, 1}) {
      std::vector<std::pair<double, int>> keys;  // logit, position
      const auto add = [&](int t) {
        double dot = 0;
        for (int d = 0; d < shape_.head_dim; ++d) {
          dot += double{q_.At(rows_ - 1, d)} * double{Value(branch, t, d, true)};
        }
        keys.push_back({dot * Scale(), t});
      };
      if (branch == 0) {
        for (int t = std::max(0, context_ - kWindow); t < context_; ++t) add(t);
      } else {
        for (int i = 0; i < kSelected; ++i) {
          const int block = selection_[int64_t{rows_ - 1} * shape_.kv_heads * kSelected + i];
          for (int j = 0; block >= 0 && j < kBlock; ++j) {
            if (block * kBlock + j < context_) add(block * kBlock + j);
          }
        }
      }
      double sum = 0;
      for (const auto& [logit, t] : keys) sum += std::exp(logit);
      for (int d = 0; d < shape_.v_head_dim; ++d) {
        for (const auto& [logit, t] : keys) {
          out[branch][d] += std::exp(logit) / sum * Value(branch, t, d, false);
        }
      }
    }
    const double gate = 1.0 / (1.0 + std::exp(-double{gate_.At(rows_ - 1, 0)}));
    for (int d = 0; d < shape_.v_head_dim; ++d) {
      CheckNear(out_.At(rows_ - 1, d), gate * (out[0][d] + out[1][d]), 1e-4,
                "WindowSparseAttention");
    }
  }

  // Multiply-adds count as two.
  double FullOperations() const {
    double keys = 0;
    for (int32_t position : positions_) keys += position + 1;
    return 2.0 * shape_.heads * (shape_.head_dim + shape_.v_head_dim) * keys;
  }
  double FullBytes() const { return 2.0 * page_table_.size() * slice_; }
  double SparseOperations() const {
    return 2.0 * shape_.heads * (shape_.head_dim + shape_.v_head_dim) * rows_ *
           (kSelected * kBlock + kWindow);
  }
  double SparseBytes() const {  // of rows that share nothing
    return 2.0 * rows_ * (kSelected * kBlock + kWindow) * shape_.kv_heads *
           (shape_.head_dim + shape_.v_head_dim);
  }

 private:
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  kernels::PagedKv Pages() {
    return {pages_.data(), DType::kBF16, static_cast<int64_t>(page_table_.size()),
            shape_.kv_heads, shape_.head_dim, shape_.v_head_dim};
  }
  float PageValue(int t, int d, bool key) const {
    const int seq = batch_.num_seqs - 1;
    const int64_t page = page_table_[seq * blocks_ + t / kBlock];
    const int64_t k_slice = int64_t{shape_.kv_heads} * kBlock * shape_.head_dim;
    return key ? pages_.At(page, t % kBlock * shape_.head_dim + d)
               : pages_.At(page, k_slice + t % kBlock * shape_.v_head_dim + d);
  }
  // branch 0: window caches, 1: pages.
  float Value(int branch, int t, int d, bool key) const {
    if (branch == 1) return PageValue(t, d, key);
    const int seq = batch_.num_seqs - 1;
    if (t >= first_position_[seq]) {
      const int row = row_begin_[seq] + t - first_position_[seq];
      return key ? step_k_.At(row, d) : step_v_.At(row, d);
    }
    const int64_t k_elements = int64_t{shape_.kv_heads} * kWindow * shape_.head_dim;
    return key ? ring_.At(seq, t % kWindow * shape_.head_dim + d)
               : ring_.At(seq, k_elements + t % kWindow * shape_.v_head_dim + d);
  }

  const Shape shape_;
  const int context_;
  const int blocks_;
  const int rows_;
  const int64_t slice_;
  HostArray pages_, ring_, step_k_, step_v_, q_, gate_, out_;
  std::vector<int32_t> selection_;
  std::vector<int32_t> row_begin_, first_position_, slab_index_, positions_, row_seq_, page_table_;
  AttentionBatch batch_;
};

}  // namespace

void BenchAttention(tensor::CpuDevice& device, const std::string& filter, double seconds,
                    Report& report) {
  struct Case {
    const char* name;
    Shape shape;
    int num_seqs, context, rows;
  };
  const Shape small = {16, 4, 128, 128};
  const Shape large = {64, 4, 192, 128};
  for (const Case& c : {Case{"prefill 16/4 d128, 512 rows at 4k", small, 1, 4096, 512},
                        Case{"prefill 16/4 d128, 512 rows at 16k", small, 1, 16384, 512},
                        Case{"prefill 64/4 d192/128, 64 rows at 8k", large, 1, 8192, 64},
                        Case{"decode 16/4 d128 at 16k", small, 1, 16384, 1},
                        Case{"decode 16/4 d128 at 4k x 8", small, 8, 4096, 1},
                        Case{"decode 64/4 d192/128 at 16k", large, 1, 16384, 1}}) {
    const std::string full = std::string("full attention ") + c.name;
    const std::string sparse = std::string("sparse attention ") + c.name;
    const bool want_full = full.find(filter) != std::string::npos;
    const bool want_sparse = sparse.find(filter) != std::string::npos;
    if (!want_full && !want_sparse) continue;
    Step step(c.shape, c.num_seqs, c.context, c.rows);
    step.RunFull(device);
    step.CheckFull();
    if (want_full) {
      report.Add(full, Measure(seconds, [&] { step.RunFull(device); }), step.FullOperations(),
                 step.FullBytes());
    }
    step.RunSparse(device);
    step.CheckSparse();
    if (want_sparse) {
      report.Add(sparse, Measure(seconds, [&] { step.RunSparse(device); }),
                 step.SparseOperations(), c.rows == 1 ? step.SparseBytes() : 0);
    }
  }
}

}  // namespace hyserve::bench
