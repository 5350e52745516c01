// The mixture of experts of the 80B preset (512 experts of width 512, 8 a token, hidden 2048):
// parity with plain loops, then times of both paths by number of rows, against the time that the
// chosen experts' weights and the products need at least. The peer is torch's grouped product
// (products_peer.py), whose rows choose their experts evenly too.
//   cuda_moe_bench [--json FILE --commit ID]
#include <initializer_list>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/matrix_map.h"
#include "engine/kernels/cuda/moe_forward.h"

namespace hyserve::bench {
namespace {

using namespace kernels::cuda;  // NOLINT: what is measured

struct Shape {
  int experts, per_token, hidden, intermediate;
  bool bias, normalize;
};

// Random matrices, one after the other, with columns that pad a row zero.
__global__ void FillMatrixKernel(__nv_bfloat16* data, int64_t rows, int64_t cols, int64_t stride,
                                 uint32_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * stride;
       i += int64_t{gridDim.x} * blockDim.x) {
    data[i] = __float2bfloat16_rn(i % stride < cols ? RandomAt(i, seed, scale) : 0.0f);
  }
}

// One thread per row: the experts in ascending order and their weights.
__global__ void ReferenceRouteKernel(const float* logits, const float* bias, int rows, Shape shape,
                                     float scaling, int* experts, float* weights) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float* own = logits + int64_t{row} * shape.experts;
  const auto score = [&](int e) { return 1.0f / (1.0f + expf(-own[e])); };
  const auto taken = [&](int e, int count) {
    for (int i = 0; i < count; ++i) {
      if (experts[row * shape.per_token + i] == e) return true;
    }
    return false;
  };
  for (int turn = 0; turn < shape.per_token; ++turn) {
    int best = -1;
    for (int e = 0; e < shape.experts; ++e) {
      if (taken(e, turn)) continue;
      const float biased = score(e) + (shape.bias ? bias[e] : 0.0f);
      if (best < 0 || biased > score(best) + (shape.bias ? bias[best] : 0.0f)) best = e;
    }
    experts[row * shape.per_token + turn] = best;
  }
  float sum = 0;
  for (int i = 0; i < shape.per_token; ++i) sum += score(experts[row * shape.per_token + i]);
  for (int i = 0; i < shape.per_token; ++i) {
    weights[row * shape.per_token + i] =
        score(experts[row * shape.per_token + i]) / (shape.normalize ? sum : 1.0f) * scaling;
  }
}

// One CTA per row.
__global__ void ReferenceMoeKernel(const __nv_bfloat16* x, const __nv_bfloat16* gate_up,
                                   const __nv_bfloat16* down, const int* experts,
                                   const float* weights, Shape shape, float* out) {
  extern __shared__ float act[];
  const int64_t hs = (shape.hidden + 7) / 8 * 8, is = (shape.intermediate + 7) / 8 * 8;
  const int row = blockIdx.x;
  for (int i = 0; i < shape.per_token; ++i) {
    const int e = experts[row * shape.per_token + i];
    __syncthreads();
    for (int j = threadIdx.x; j < shape.intermediate; j += blockDim.x) {
      float gate = 0, up = 0;
      for (int k = 0; k < shape.hidden; ++k) {
        const float v = __bfloat162float(x[row * hs + k]);
        gate += v * __bfloat162float(gate_up[(int64_t{e} * 2 * shape.intermediate + j) * hs + k]);
        up += v * __bfloat162float(
                      gate_up[(int64_t{e} * 2 * shape.intermediate + shape.intermediate + j) * hs +
                              k]);
      }
      act[j] = gate / (1.0f + expf(-gate)) * up;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < shape.hidden; d += blockDim.x) {
      float y = 0;
      for (int j = 0; j < shape.intermediate; ++j) {
        y += act[j] * __bfloat162float(down[(int64_t{e} * shape.hidden + d) * is + j]);
      }
      const float add = weights[row * shape.per_token + i] * y;
      float* const sum = out + int64_t{row} * shape.hidden + d;
      *sum = i == 0 ? add : *sum + add;
    }
  }
}

class Model {
 public:
  explicit Model(const Shape& shape, int max_rows) : shape_(shape) {
    const int64_t hs = PaddedColumns(shape.hidden), is = PaddedColumns(shape.intermediate);
    const int64_t gate_up_rows = int64_t{2} * shape.intermediate;
    gate_up_ = DeviceArray<__nv_bfloat16>(shape.experts * gate_up_rows * hs);
    down_ = DeviceArray<__nv_bfloat16>(int64_t{shape.experts} * shape.hidden * is);
    x_ = DeviceArray<__nv_bfloat16>(max_rows * hs);
    out_ = DeviceArray<__nv_bfloat16>(int64_t{max_rows} * shape.hidden);
    logits_ = DeviceArray<float>(int64_t{max_rows} * shape.experts);
    bias_ = DeviceArray<float>(shape.experts);
    FillMatrixKernel<<<1056, 256>>>(gate_up_, shape.experts * gate_up_rows, shape.hidden, hs, 1,
                                    0.03f);
    FillMatrixKernel<<<1056, 256>>>(down_, int64_t{shape.experts} * shape.hidden,
                                    shape.intermediate, is, 2, 0.03f);
    FillMatrixKernel<<<1056, 256>>>(x_, max_rows, shape.hidden, hs, 3, 1.0f);
    FillRandom(logits_, int64_t{max_rows} * shape.experts, 4, 1.0f);
    FillRandom(bias_, shape.experts, 5, 0.1f);
    Table(gate_up_, gate_up_rows, shape.hidden, &args_.gate_up);
    Table(down_, shape.hidden, shape.intermediate, &args_.down);
    cudaDeviceProp properties;
    BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
    args_.num_sms = properties.multiProcessorCount;
    args_.x = x_;
    args_.x_stride = hs;
    args_.hidden = shape.hidden;
    args_.intermediate = shape.intermediate;
    args_.num_experts = shape.experts;
    args_.per_token = shape.per_token;
    args_.out = out_;
    args_.out_stride = shape.hidden;
    args_.route = {logits_, shape.experts, shape.bias ? bias_ : nullptr, shape.normalize, kScaling};
    BENCH_CHECK(cudaDeviceSynchronize());
  }
  ~Model() {
    for (void* p : std::initializer_list<void*>{gate_up_, down_, x_, out_, logits_, bias_}) {
      BENCH_CHECK(cudaFree(p));
    }
    for (void* p : tables_) BENCH_CHECK(cudaFree(p));
  }

  void Prepare(int rows, MoePath path) {
    rows_ = rows;
    args_.path = path;
    args_.rows = std::min<int64_t>(rows, MoeRowsPerPass(shape_.per_token));
    const size_t bytes = MoeWorkspaceBytes(args_);
    if (bytes > workspace_bytes_) {
      if (workspace_ != nullptr) BENCH_CHECK(cudaFree(workspace_));
      workspace_ = DeviceArray<std::byte>(bytes);
      workspace_bytes_ = bytes;
    }
    BENCH_CHECK(cudaMemset(workspace_, 0xff, workspace_bytes_));
    BENCH_CHECK(cudaMemset(out_, 0xff, size_t{2} * rows * shape_.hidden));
    BENCH_CHECK(cudaDeviceSynchronize());
  }
  void Run(cudaStream_t stream, int rotate = 0) {
    for (int begin = 0; begin < rows_; begin += args_.rows) {
      MoeForwardArgs args = args_;
      args.rows = std::min(args_.rows, rows_ - begin);
      args.x = x_ + begin * args.x_stride;
      args.out = out_ + begin * args.out_stride;
      args.route.logits += int64_t{begin + rotate} * shape_.experts;  // rotate: other rows' choices
      BENCH_CHECK(RunMoe(args, workspace_, stream));
    }
  }
  std::vector<float> Out(int rows) {
    BENCH_CHECK(cudaDeviceSynchronize());
    const std::vector<__nv_bfloat16> raw = Download(out_, int64_t{rows} * shape_.hidden);
    return std::vector<float>(raw.begin(), raw.end());
  }
  std::vector<float> Reference(int rows) {
    int* experts = DeviceArray<int>(rows * shape_.per_token);
    float* weights = DeviceArray<float>(rows * shape_.per_token);
    float* out = DeviceArray<float>(int64_t{rows} * shape_.hidden);
    Route(rows, experts, weights);
    ReferenceMoeKernel<<<rows, 256, shape_.intermediate * 4>>>(x_, gate_up_, down_, experts,
                                                               weights, shape_, out);
    BENCH_CHECK(cudaDeviceSynchronize());
    const std::vector<float> result = Download(out, int64_t{rows} * shape_.hidden);
    for (void* p : std::initializer_list<void*>{experts, weights, out}) {
      BENCH_CHECK(cudaFree(p));
    }
    return result;
  }
  // How many experts the rows choose.
  int CountExperts(int rows) {
    int* experts = DeviceArray<int>(rows * shape_.per_token);
    float* weights = DeviceArray<float>(rows * shape_.per_token);
    Route(rows, experts, weights);
    std::vector<bool> seen(shape_.experts);
    for (int e : Download(experts, rows * shape_.per_token)) seen[e] = true;
    BENCH_CHECK(cudaFree(experts));
    BENCH_CHECK(cudaFree(weights));
    return static_cast<int>(std::count(seen.begin(), seen.end(), true));
  }
  double ExpertBytes() const { return 2.0 * 3 * shape_.hidden * shape_.intermediate; }

 private:
  static constexpr float kScaling = 1.5f;

  void Route(int rows, int* experts, float* weights) {
    ReferenceRouteKernel<<<(rows + 31) / 32, 32>>>(logits_, bias_, rows, shape_, kScaling, experts,
                                                   weights);
  }
  void Table(const __nv_bfloat16* data, int64_t rows, int64_t cols, ExpertMatrices* matrices) {
    std::vector<const void*> pointers;
    std::vector<CUtensorMap> maps(shape_.experts);
    for (int e = 0; e < shape_.experts; ++e) {
      pointers.push_back(data + e * rows * PaddedColumns(cols));
      BENCH_CHECK(EncodeMatrixMap(pointers.back(), rows, cols, PaddedColumns(cols), kMoeBoxRows,
                                  &maps[e]));
    }
    auto** device_pointers = DeviceArray<const void*>(shape_.experts);
    auto* device_maps = DeviceArray<CUtensorMap>(shape_.experts);
    BENCH_CHECK(cudaMemcpy(device_pointers, pointers.data(), pointers.size() * sizeof(void*),
                           cudaMemcpyHostToDevice));
    BENCH_CHECK(cudaMemcpy(device_maps, maps.data(), maps.size() * sizeof(CUtensorMap),
                           cudaMemcpyHostToDevice));
    tables_.push_back(device_pointers);
    tables_.push_back(device_maps);
    *matrices = {device_pointers, device_maps, PaddedColumns(cols)};
  }

  const Shape shape_;
  __nv_bfloat16 *gate_up_, *down_, *x_, *out_;
  float *logits_, *bias_;
  std::vector<void*> tables_;
  MoeForwardArgs args_;
  int rows_ = 0;
  std::byte* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
};

bool Check(const Shape& shape, const std::vector<int>& rows_list) {
  bool good = true;
  Model model(shape, 4096);
  for (const MoePath path : {MoePath::kSkinny, MoePath::kGrouped}) {
    std::vector<float> first;
    for (int rows : rows_list) {
      const std::vector<float> want = model.Reference(rows);
      model.Prepare(rows, path);
      model.Run(nullptr);
      const std::vector<float> got = model.Out(rows);
      const double error = RelativeError(got, want);
      model.Run(nullptr);
      const bool repeats = model.Out(rows) == got;
      const std::vector<float> row(got.begin(), got.begin() + shape.hidden);
      const bool same = first.empty() || first == row;
      first = row;
      const bool ok = error < 8e-3 && repeats && same;
      good &= ok;
      if (!ok) {
        std::printf("FAILED: %d experts, %d a token, hidden %d, intermediate %d, %s path, %d rows: "
                    "error %.2e%s%s\n", shape.experts, shape.per_token, shape.hidden,
                    shape.intermediate, path == MoePath::kSkinny ? "skinny" : "grouped", rows,
                    error,
                    repeats ? "" : ", runs differ", same ? "" : ", row depends on others");
      }
    }
  }
  return good;
}

void Time(int argc, char** argv) {
  JsonRows json(argc, argv);
  cudaStream_t stream;
  BENCH_CHECK(cudaStreamCreate(&stream));
  const double copy = CopyBytesPerSecond(stream);
  const double flops = 780e12;  // of an 8192-cubed bf16 product on the H200: gemm_bench
  std::printf("%s: copy %.0f GB/s\n", json.gpu().c_str(), copy / 1e9);
  std::printf("%6s %9s %10s %7s %10s %7s %8s\n", "rows", "experts", "skinny us", "limit",
              "grouped us", "limit", "TFLOP/s");
  // Without a bias, whose random values would make the same few experts win for every row; a
  // trained one spreads the rows.
  const Shape shape = {512, 8, 2048, 512, false, true};
  Model model(shape, 33000);
  for (int rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768}) {
    const int distinct = model.CountExperts(rows);
    const double work = rows * 8 * model.ExpertBytes();
    const double limit = 1e6 * std::max(distinct * model.ExpertBytes() / copy, work / flops);
    double us[2] = {0, 0};
    for (const MoePath path : {MoePath::kSkinny, MoePath::kGrouped}) {
      if (path == MoePath::kSkinny && rows > 2048) continue;
      model.Prepare(rows, path);
      us[path == MoePath::kGrouped] = MicrosecondsEach(stream, rows > 512 ? 3 : 16, [&](int i) {
        model.Run(stream, rows <= 64 ? 100 * i : 0);
      });
    }
    std::printf("%6d %9d %10.1f %6.1f%% %10.1f %6.1f%% %8.0f\n", rows, distinct, us[0],
                us[0] > 0 ? 100 * limit / us[0] : 0.0, us[1], 100 * limit / us[1],
                work / us[1] / 1e6);
    char fields[256];
    std::snprintf(fields, sizeof(fields),
                  "\"rows\": %d, \"experts\": %d, \"skinny_us\": %.2f, \"grouped_us\": %.2f, "
                  "\"limit_us\": %.2f", rows, distinct, us[0], us[1], limit);
    json.Add("moe_80b", fields);
  }
}

}  // namespace
}  // namespace hyserve::bench

int main(int argc, char** argv) {
  using namespace hyserve::bench;
  bool good = true;
  good &= Check({8, 2, 256, 128, false, true}, {1, 5, 32, 33, 300, 1500, 4000});
  good &= Check({64, 6, 520, 136, true, true}, {1, 2, 31, 32, 40, 700});
  good &= Check({5, 5, 40, 24, true, false}, {1, 50, 129});
  good &= Check({600, 4, 136, 100, true, true}, {3, 64, 900});
  good &= Check({512, 8, 2048, 512, true, true}, {1, 16, 64, 200});
  if (!good) return 1;
  std::printf("parity: all good\n");
  Time(argc, argv);
  return 0;
}
