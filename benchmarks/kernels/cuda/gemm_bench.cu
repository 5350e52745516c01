// y = x W^T for the projections of the 7B and 80B presets: our kernels for few rows and cuBLASLt,
// against the bandwidth of a device copy (few rows) and the rate of an 8192-cubed product (many
// rows).
//   cuda_gemm_bench [--json FILE --commit ID]
#include <cublasLt.h>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/blas_gemm.h"
#include "engine/kernels/cuda/matrix_map.h"
#include "engine/kernels/cuda/skinny_gemm.h"

namespace hyserve::bench {
namespace {

using kernels::cuda::BlasGemmArgs;
using kernels::cuda::SkinnyGemmArgs;

__global__ void ReferenceKernel(const __nv_bfloat16* w, int64_t ldw, const __nv_bfloat16* x,
                                int64_t ldx, float* y, int64_t rows, int64_t n, int64_t k) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * n) return;
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) {
    sum += static_cast<double>(__bfloat162float(w[i % n * ldw + j])) *
           __bfloat162float(x[i / n * ldx + j]);
  }
  y[i] = static_cast<float>(sum);
}

struct Shape {
  const char* name;
  int64_t out;
  int64_t in;
};

enum class Kernel { kSkinny, kBlas };
constexpr const char* kNames[] = {"skinny", "cuBLASLt"};

class GemmBench {
 public:
  GemmBench(int argc, char** argv) : json_(argc, argv) {
    BENCH_CHECK(cudaStreamCreate(&stream_));
    BENCH_CHECK(cublasLtCreate(&blas_));
    workspace_ = DeviceArray<char>(kernels::cuda::kBlasWorkspaceBytes);
    weights_ = DeviceArray<__nv_bfloat16>(kWeights);
    FillRandom(weights_, kWeights, 1, 0.05f);
    x_ = DeviceArray<__nv_bfloat16>(kMostRows * kMostIn);
    FillRandom(x_, kMostRows * kMostIn, 2, 1.0f);
    y_ = DeviceArray<float>(kMostY);
    BENCH_CHECK(cudaDeviceSynchronize());
  }

  bool Check() {
    const Shape shapes[] = {{"", 4096, 4096}, {"", 6208, 4096}, {"", 513, 11008}, {"", 100, 520},
                            {"", 33, 1000},   {"", 2048, 512},  {"", 1, 8},       {"", 72, 2053}};
    bool good = true;
    for (const Shape& shape : shapes) {
      std::vector<float> row;
      for (int rows : {1, 2, 7, 8, 9, 15, 16}) {
        good &= CheckOne(shape, rows, Kernel::kSkinny, &row);
      }
      if (shape.in % 8 != 0 || shape.out % 8 != 0) continue;
      row.clear();
      for (int rows : {17, 40, 64, 65, 128, 200, 600, 3000}) {
        good &= CheckOne(shape, rows, Kernel::kBlas, &row);
      }
    }
    return good;
  }

  void Time() {
    copy_ = CopyBytesPerSecond(stream_);
    const double us = TimeOne({"", 8192, 8192}, 8192, Kernel::kBlas);
    flops_ = 2.0 * 8192 * 8192 * 8192 / us * 1e6;
    std::printf("%s: copy %.0f GB/s, bf16 product of 8192 cubed %.0f TFLOP/s\n",
                json_.gpu().c_str(), copy_ / 1e9, flops_ / 1e12);
    const Shape shapes[] = {{"7b qkv+gates", 6208, 4096},   {"7b output", 4096, 4096},
                            {"7b gate+up", 22016, 4096},    {"7b down", 4096, 11008},
                            {"7b lm head", 151680, 4096},   {"80b qkv+gates", 13696, 2048},
                            {"80b output", 2048, 8192},     {"80b router", 512, 2048},
                            {"80b lm head", 152576, 2048}};
    std::printf("%-15s %6s %10s %7s %10s %7s\n", "shape", "rows", "skinny us", "limit", "blas us",
                "limit");
    for (const Shape& shape : shapes) {
      for (int64_t rows : {1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512, 4096}) {
        const double bytes =
            2.0 * (shape.out * shape.in + rows * shape.in + rows * shape.out);
        const double limit =
            1e6 * std::max(bytes / copy_, 2.0 * rows * shape.out * shape.in / flops_);
        double us[2] = {};
        std::printf("%-15s %6ld", shape.name, static_cast<long>(rows));
        for (Kernel kernel : {Kernel::kSkinny, Kernel::kBlas}) {
          if (rows > MostRows(kernel)) {
            std::printf(" %10s %7s", "-", "-");
            continue;
          }
          double& time = us[static_cast<int>(kernel)];
          time = TimeOne(shape, rows, kernel);
          std::printf(" %10.2f %6.1f%%", time, 100 * limit / time);
        }
        std::printf("\n");
        char fields[400];
        std::snprintf(fields, sizeof(fields),
                      "\"shape\": \"%s\", \"rows\": %ld, \"out\": %ld, \"in\": %ld, "
                      "\"skinny_us\": %.3f, \"blas_us\": %.3f, "
                      "\"limit_us\": %.3f, \"copy_gb_s\": %.1f",
                      shape.name, static_cast<long>(rows), static_cast<long>(shape.out),
                      static_cast<long>(shape.in), us[0], us[1], limit, copy_ / 1e9);
        json_.Add("linear", fields);
      }
    }
  }

 private:
  static constexpr size_t kWeights = size_t{1} << 30;  // elements: 2 GiB
  static constexpr int64_t kMostRows = 8192;
  static constexpr int64_t kMostIn = 11008;
  static constexpr size_t kMostY = size_t{8192} * 152576 / 2;

  static int64_t MostRows(Kernel kernel) {
    return kernel == Kernel::kSkinny ? kernels::cuda::kSkinnyMaxRows : kMostRows;
  }

  void Run(const Shape& shape, int64_t rows, Kernel kernel, const __nv_bfloat16* weight, bool f32) {
    const int64_t stride = kernels::cuda::PaddedColumns(shape.in);
    if (kernel == Kernel::kSkinny) {
      BENCH_CHECK(kernels::cuda::LaunchSkinnyGemm(
          {.weight = weight, .weight_stride = stride, .x = x_, .x_stride = stride, .y = y_,
           .y_stride = shape.out, .y_is_f32 = f32, .rows = static_cast<int>(rows),
           .out_features = shape.out, .in_features = static_cast<int>(shape.in)},
          stream_));
    } else {
      BENCH_CHECK(kernels::cuda::RunBlasGemm(
          blas_,
          {.weight = weight, .weight_stride = stride, .x = x_, .x_stride = stride, .y = y_,
           .y_stride = shape.out, .y_is_f32 = f32, .rows = rows, .out_features = shape.out,
           .in_features = shape.in},
          workspace_, stream_));
    }
  }

  // Against the reference, and the first row bitwise against the call before.
  bool CheckOne(const Shape& shape, int rows, Kernel kernel, std::vector<float>* first_row) {
    const size_t count = rows * shape.out;
    const int64_t stride = kernels::cuda::PaddedColumns(shape.in);
    float* want = DeviceArray<float>(count);
    if (stride != shape.in) {  // the columns that pad a row are zero
      for (__nv_bfloat16* m : {weights_, x_}) {
        BENCH_CHECK(cudaMemset2D(m + shape.in, stride * 2, 0, (stride - shape.in) * 2, shape.out));
      }
    }
    ReferenceKernel<<<(count + 127) / 128, 128>>>(weights_, stride, x_, stride, want, rows,
                                                  shape.out, shape.in);
    BENCH_CHECK(cudaMemset(y_, 0xff, count * 4));
    BENCH_CHECK(cudaDeviceSynchronize());
    Run(shape, rows, kernel, weights_, true);
    BENCH_CHECK(cudaDeviceSynchronize());
    const std::vector<float> got = Download(y_, count);
    const double error = RelativeError(got, Download(want, count));
    BENCH_CHECK(cudaFree(want));
    const std::vector<float> row(got.begin(), got.begin() + shape.out);
    const bool same = first_row->empty() || *first_row == row;
    *first_row = row;
    const bool good = error < 1e-5 && (same || kernel == Kernel::kBlas);
    if (!good || !same) {
      std::printf("%s: %s out %ld in %ld rows %d: error %.2e%s\n", good ? "note" : "FAILED",
                  kNames[static_cast<int>(kernel)], static_cast<long>(shape.out),
                  static_cast<long>(shape.in), rows, error,
                  same ? "" : ", the first row's bits depend on the number of rows");
    }
    return good;
  }

  // Every launch reads another part of the weights, so that none is in L2.
  double TimeOne(const Shape& shape, int64_t rows, Kernel kernel) {
    const size_t size = shape.out * kernels::cuda::PaddedColumns(shape.in);
    const int copies = static_cast<int>(std::min<size_t>(kWeights / size, 64));
    const int launches = std::max(2, std::min<int>(copies, rows > 512 ? 2 : 64));
    const bool fits = static_cast<size_t>(rows) * shape.out <= kMostY;
    if (!fits) return 0;
    return MicrosecondsEach(stream_, launches, [&](int i) {
      Run(shape, rows, kernel, weights_ + i % copies * size, false);
    });
  }

  JsonRows json_;
  cudaStream_t stream_;
  cublasLtHandle_t blas_;
  char* workspace_;
  __nv_bfloat16* weights_;
  __nv_bfloat16* x_;
  float* y_;
  double copy_ = 0;
  double flops_ = 0;
};

}  // namespace
}  // namespace hyserve::bench

int main(int argc, char** argv) {
  hyserve::bench::GemmBench bench(argc, argv);
  if (!bench.Check()) return 1;
  std::printf("parity: all good\n");
  bench.Time();
  return 0;
}
