// Row ops and cache writes against a device-to-device copy that moves as many bytes: every buffer
// is far larger than L2, or another part of it is used by every launch.
//   cuda_row_ops_bench [--json FILE --commit ID]
#include <cmath>
#include <numeric>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/dense_ops.h"
#include "engine/kernels/cuda/rotary_cache.h"

namespace hyserve::bench {
namespace {

using kernels::cuda::Bf16Matrix;

constexpr size_t kPool = size_t{1} << 30;  // elements of each pool of activations, 2 GiB
constexpr int kHidden = 4096;

class RowOpsBench {
 public:
  RowOpsBench(int argc, char** argv) : json_(argc, argv) {
    BENCH_CHECK(cudaStreamCreate(&stream_));
    for (int i = 0; i < 3; ++i) {
      pools_[i] = DeviceArray<__nv_bfloat16>(kPool);
      FillRandom(pools_[i], kPool, 10 + i, 1.0f);
    }
    weight_ = DeviceArray<float>(kHidden);
    FillRandom(weight_, kHidden, 20, 1.0f);
  }

  bool Check() {
    const int rows = 50;
    const size_t count = size_t{rows} * kHidden;
    const std::vector<__nv_bfloat16> hidden = Download(pools_[0], count);
    const std::vector<__nv_bfloat16> delta = Download(pools_[1], count);
    const std::vector<float> weight = Download(weight_, kHidden);
    BENCH_CHECK(cudaMemset(pools_[2], 0xff, count * 2));
    AddRmsNorm(rows, 0);
    BENCH_CHECK(cudaDeviceSynchronize());
    std::vector<float> got, want;
    const std::vector<__nv_bfloat16> out = Download(pools_[2], count);
    for (int row = 0; row < rows; ++row) {
      double squares = 0;
      std::vector<double> x;
      for (int i = 0; i < kHidden; ++i) {
        x.push_back(double{__bfloat162float(hidden[row * kHidden + i])} +
                    __bfloat162float(delta[row * kHidden + i]));
        squares += x[i] * x[i];
      }
      for (int i = 0; i < kHidden; ++i) {
        want.push_back(static_cast<float>(x[i] / std::sqrt(squares / kHidden + 1e-5) * weight[i]));
        got.push_back(__bfloat162float(out[row * kHidden + i]));
      }
    }
    const double norm_error = RelativeError(got, want);

    const std::vector<__nv_bfloat16> gate_up = Download(pools_[1], 2 * count);
    BENCH_CHECK(cudaMemset(pools_[2], 0xff, count * 2));
    SwiGlu(rows, kHidden, 0);
    BENCH_CHECK(cudaDeviceSynchronize());
    const std::vector<__nv_bfloat16> activated = Download(pools_[2], count);
    got.clear();
    want.clear();
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < kHidden; ++i) {
        const double gate = __bfloat162float(gate_up[size_t{2} * row * kHidden + i]);
        const double up = __bfloat162float(gate_up[size_t{2} * row * kHidden + kHidden + i]);
        want.push_back(static_cast<float>(gate / (1 + std::exp(-gate)) * up));
        got.push_back(__bfloat162float(activated[row * kHidden + i]));
      }
    }
    const double swiglu_error = RelativeError(got, want);
    const bool good = norm_error < 5e-3 && swiglu_error < 5e-3;
    std::printf("parity: AddRmsNorm %.1e, SwiGlu %.1e: %s\n", norm_error, swiglu_error,
                good ? "good" : "FAILED");
    return good;
  }

  void Time() {
    copy_ = CopyBytesPerSecond(stream_);
    std::printf("%s, copy %.0f GB/s\n%-34s %9s %9s %9s\n", json_.gpu().c_str(), copy_ / 1e9, "op",
                "us", "GB/s", "of copy");
    for (int64_t rows : {8192, 1024, 64, 1}) {
      const size_t each = rows * kHidden;
      Report("copy of as many bytes", rows, 8.0 * each, [&](int i) {
        const size_t at = std::min(i * each % (kPool / 2), kPool / 2 - each);
        BENCH_CHECK(cudaMemcpyAsync(pools_[0] + 2 * at, pools_[1] + 2 * at, 4 * each,
                                    cudaMemcpyDeviceToDevice, stream_));
      });
      Report("AddRmsNorm", rows, 8.0 * each, [&](int i) { AddRmsNorm(rows, i * each % kPool); });
    }
    for (int64_t rows : {4096, 64, 1}) {
      const int cols = 12288;
      const size_t each = rows * cols;
      Report("SwiGlu x12288", rows, 6.0 * each,
             [&](int i) { SwiGlu(rows, cols, i * each % (kPool / 2)); });
    }
    for (int64_t rows : {32768, 64}) {
      Rotary("Rotary 64 heads x192, first 64", rows, 64, 192, 64);
      Rotary("Rotary 32 heads x128", rows, 32, 128, 128);
      CacheWrites(rows, 4, 192, 128, 64);
      CacheWrites(rows, 8, 128, 128, 128);
    }
  }

 private:
  template <typename Launch>
  void Report(const std::string& op, int64_t rows, double bytes, Launch launch) {
    const int launches = static_cast<int>(std::clamp(4e9 / bytes, 4.0, 64.0));
    const double us = MicrosecondsEach(stream_, launches, launch);
    const double rate = bytes / us * 1e6;
    std::printf("%-26s %7ld %9.2f %9.0f %8.1f%%\n", op.c_str(), static_cast<long>(rows), us,
                rate / 1e9, 100 * rate / copy_);
    char fields[200];
    std::snprintf(fields, sizeof fields,
                  "\"rows\": %ld, \"us\": %.3f, \"bytes\": %.0f, \"of_copy\": %.4f",
                  static_cast<long>(rows), us, bytes, rate / copy_);
    json_.Add(op, fields);
  }

  void AddRmsNorm(int64_t rows, size_t at) {
    at = std::min(at, kPool - rows * kHidden) / 8 * 8;
    BENCH_CHECK(kernels::cuda::LaunchAddRmsNorm({.hidden = {pools_[0] + at, kHidden},
                                                 .delta = {pools_[1] + at, kHidden},
                                                 .out = {pools_[2] + at, kHidden},
                                                 .weight = weight_,
                                                 .epsilon = 1e-5f,
                                                 .num_rows = rows,
                                                 .num_cols = kHidden},
                                                stream_));
  }
  void SwiGlu(int64_t rows, int64_t cols, size_t at) {
    at = std::min<size_t>(at, kPool / 2 - rows * cols) / 8 * 8;
    BENCH_CHECK(kernels::cuda::LaunchSwiGlu(pools_[1] + 2 * at, pools_[1] + 2 * at + cols, 2 * cols,
                                            {pools_[2] + at, cols}, rows, cols, stream_));
  }
  kernels::cuda::RotaryAngles Angles(int64_t rows, int rotary_dim) {
    std::vector<double> inv_freq;
    for (int i = 0; i < rotary_dim / 2; ++i) {
      inv_freq.push_back(std::pow(1e6, -2.0 * i / rotary_dim));
    }
    std::vector<int32_t> positions(rows);
    std::iota(positions.begin(), positions.end(), 100000);
    return {Upload(inv_freq), Upload(positions), rotary_dim};
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* data = DeviceArray<T>(values.size());
    BENCH_CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return data;
  }

  void Rotary(const std::string& op, int64_t rows, int heads, int head_dim, int rotary_dim) {
    const kernels::cuda::RotaryAngles angles = Angles(rows, rotary_dim);
    const size_t each = rows * heads * head_dim;
    Report(op, rows, 4.0 * rows * heads * rotary_dim, [&](int i) {
      const size_t at = i % std::max<size_t>(1, kPool / each) * each;
      BENCH_CHECK(kernels::cuda::LaunchRotary({.x = pools_[0] + at,
                                               .x_stride = int64_t{heads} * head_dim,
                                               .num_heads = heads,
                                               .head_dim = head_dim,
                                               .angles = angles,
                                               .num_rows = rows},
                                              stream_));
    });
  }

  // Rows of 64 sequences, of one when there are many; pages in random places.
  void CacheWrites(int64_t rows, int kv_heads, int dim, int v_dim, int rotary_dim) {
    const int64_t k_cols = int64_t{kv_heads} * dim;
    const int64_t v_cols = int64_t{kv_heads} * v_dim;
    const int num_seqs = rows > 64 ? 1 : static_cast<int>(rows);
    const int64_t blocks_per_seq = (rows / num_seqs + 63) / 64;
    std::vector<int32_t> pages(num_seqs * blocks_per_seq);
    std::iota(pages.begin(), pages.end(), 0);
    for (size_t i = 0; i < pages.size(); ++i) std::swap(pages[i], pages[i * 7919 % pages.size()]);
    std::vector<int32_t> positions, row_seq, row_begin(1, 0), first(num_seqs, 0), slabs(num_seqs);
    for (int s = 0; s < num_seqs; ++s) {
      slabs[s] = s;
      for (int i = 0; i < rows / num_seqs; ++i) {
        positions.push_back(i);
        row_seq.push_back(s);
      }
      row_begin.push_back(static_cast<int32_t>(positions.size()));
    }
    kernels::cuda::RotaryAngles angles = Angles(rows, rotary_dim);
    angles.positions = Upload(positions);
    const kernels::cuda::PagedDestination paged = {.pages = pools_[2],
                                                   .slice = 64 * (k_cols + v_cols),
                                                   .k_slice = 64 * k_cols,
                                                   .page_table = Upload(pages),
                                                   .page_table_stride =
                                                       static_cast<int>(blocks_per_seq),
                                                   .row_seq = Upload(row_seq)};
    const size_t each = rows * std::max(k_cols, v_cols);
    const auto write = [&](int i) {
      const size_t at = i % std::max<size_t>(1, kPool / each) * each;
      return kernels::cuda::KvWrite{.k = pools_[0] + at,
                                    .k_stride = k_cols,
                                    .v = pools_[1] + at,
                                    .v_stride = v_cols,
                                    .angles = angles,
                                    .value_scale = 0.7f,
                                    .num_kv_heads = kv_heads,
                                    .head_dim = dim,
                                    .v_head_dim = v_dim,
                                    .num_rows = rows};
    };
    char shape[40];
    std::snprintf(shape, sizeof shape, " %dx%d/%d", kv_heads, dim, v_dim);
    const double bytes =
        4.0 * rows * (k_cols + v_cols) + 2.0 * rows * kv_heads * rotary_dim;
    Report(std::string("AppendPagedKv") + shape, rows, bytes, [&](int i) {
      BENCH_CHECK(kernels::cuda::LaunchAppendPagedKv(write(i), paged, stream_));
    });
    Report(std::string("PrepareWindowKv") + shape, rows, bytes, [&](int i) {
      BENCH_CHECK(kernels::cuda::LaunchPrepareWindowKv(
          write(i), {pools_[2], k_cols, pools_[2] + rows * k_cols, v_cols}, stream_));
    });
    const int64_t slab = 128 * (k_cols + v_cols);
    const int32_t* row_begin_device = Upload(row_begin);
    const int32_t* first_device = Upload(first);
    const int32_t* slabs_device = Upload(slabs);
    Report(std::string("StoreWindowKv") + shape, rows,
           4.0 * std::min<int64_t>(rows, num_seqs * 128) * (k_cols + v_cols), [&](int i) {
             const size_t at = i % std::max<size_t>(1, kPool / each) * each;
             BENCH_CHECK(kernels::cuda::LaunchStoreWindowKv(
                 {.k = pools_[0] + at,
                  .k_stride = k_cols,
                  .v = pools_[1] + at,
                  .v_stride = v_cols,
                  .ring = {.slabs = reinterpret_cast<char*>(pools_[2]),
                           .slab_stride_bytes = 2 * slab,
                           .k_offset_bytes = 0,
                           .v_offset_bytes = 256 * k_cols,
                           .window = 128,
                           .slab_index = slabs_device},
                  .num_kv_heads = kv_heads,
                  .head_dim = dim,
                  .v_head_dim = v_dim,
                  .row_begin = row_begin_device,
                  .first_position = first_device,
                  .num_seqs = num_seqs,
                  .max_rows_per_seq = static_cast<int>(rows / num_seqs)},
                 stream_));
           });
  }

  JsonRows json_;
  cudaStream_t stream_;
  __nv_bfloat16* pools_[3];
  float* weight_;
  double copy_ = 0;
};

}  // namespace
}  // namespace hyserve::bench

int main(int argc, char** argv) {
  hyserve::bench::RowOpsBench bench(argc, argv);
  if (!bench.Check()) return 1;
  bench.Time();
  return 0;
}
