// SampleTokens on rows that lie in device memory, not in L2: every launch takes other rows of a
// large pool. Beside the time stands how long reading the logits once takes at the rate of a
// device-to-device copy.
//   cuda_sample_tokens_bench [--json FILE --commit ID]
#include <cmath>
#include <numeric>

#include "benchmarks/kernels/cuda/bench_util.cuh"
#include "engine/kernels/cuda/sample_tokens.h"

namespace hyserve::bench {
namespace {

using kernels::SampledRow;
using kernels::SampleRow;

constexpr size_t kPool = size_t{1} << 29;  // logits, 2 GiB
constexpr float kDeviation = 2.5f;         // of the logits
constexpr int kMostRows = 256;

struct Kind {
  const char* name;
  SampleRow row;
};
const Kind kKinds[] = {
    {"greedy", {}},
    {"temperature", {.temperature = 0.8f}},
    {"top_k 50 top_p 0.9", {.temperature = 0.8f, .top_p = 0.9f, .top_k = 50}},
    {"top_p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
    {"greedy logprobs 20", {.num_logprobs = kernels::kMaxTopLogprobs}},
};

// One row, everything sorted, in double.
SampledRow Reference(const float* logits, int cols, const SampleRow& row) {
  std::vector<int32_t> ids(cols);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float max = logits[ids[0]];
  SampledRow out;
  out.token_id = ids[0];
  if (row.num_logprobs > 0) {
    double sum = 0;
    for (int i = 0; i < cols; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
    out.num_top = row.num_logprobs;
    for (int i = 0; i < out.num_top; ++i) {
      out.top_ids[i] = ids[i];
      out.top_logprobs[i] =
          static_cast<float>(static_cast<double>(logits[ids[i]]) - max - std::log(sum));
    }
  }
  if (row.temperature == 0) return out;
  size_t kept = row.top_k > 0 ? row.top_k : cols;
  if (row.top_k == 0 && row.top_p == 1) std::sort(ids.begin(), ids.end());
  std::vector<double> running;
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += std::exp((static_cast<double>(logits[ids[i]]) - max) / row.temperature);
    running.push_back(sum);
  }
  const auto reaches = [&](double share) {
    return std::upper_bound(running.begin(), running.end(), share * running.back()) -
           running.begin();
  };
  if (row.top_p < 1) running.resize(reaches(row.top_p) + 1);
  out.token_id = ids[reaches(row.uniform)];
  return out;
}

class SampleTokensBench {
 public:
  SampleTokensBench(int argc, char** argv) : json_(argc, argv) {
    BENCH_CHECK(cudaStreamCreate(&stream_));
    logits_ = DeviceArray<float>(kPool);
    FillRandom(logits_, kPool, 1, kDeviation);
    rows_ = DeviceArray<SampleRow>(kMostRows);
    out_ = DeviceArray<SampledRow>(kMostRows);
  }

  bool Check() {
    bool good = true;
    for (const int cols : {32768, 151680}) {
      const int num_rows = 4;
      const std::vector<float> logits = Download(logits_, size_t{num_rows} * cols);
      for (const Kind& kind : kKinds) {
        const std::vector<SampleRow> rows = SetRows(kind, num_rows);
        Sample(num_rows, cols, 0);
        BENCH_CHECK(cudaDeviceSynchronize());
        const std::vector<SampledRow> out = Download(out_, num_rows);
        for (int i = 0; i < num_rows; ++i) {
          const SampledRow want = Reference(&logits[size_t{1} * i * cols], cols, rows[i]);
          bool same = out[i].token_id == want.token_id && out[i].num_top == want.num_top;
          for (int j = 0; same && j < want.num_top; ++j) {
            same = out[i].top_ids[j] == want.top_ids[j] &&
                   std::fabs(out[i].top_logprobs[j] - want.top_logprobs[j]) < 1e-5f;
          }
          if (same) continue;
          good = false;
          std::printf("FAILED: %s of %d, row %d: token %d, not %d\n", kind.name, cols, i,
                      out[i].token_id, want.token_id);
        }
      }
    }
    std::printf("parity: %s\n", good ? "good" : "FAILED");
    return good;
  }

  void Time() {
    const double copy = CopyBytesPerSecond(stream_);
    std::printf("%s, copy %.0f GB/s\n%-20s %7s %5s %9s %9s %9s\n", json_.gpu().c_str(), copy / 1e9,
                "row", "vocab", "rows", "us", "read us", "of read");
    for (const int cols : {151680, 32768}) {
      for (const Kind& kind : kKinds) {
        for (const int num_rows : {1, 8, 32, kMostRows}) {
          SetRows(kind, num_rows);
          const size_t each = size_t{1} * num_rows * cols;
          const size_t places = kPool / each;
          const int launches = static_cast<int>(std::clamp<size_t>(places, 4, 64));
          const double us = MicrosecondsEach(
              stream_, launches, [&](int i) { Sample(num_rows, cols, i % places * each); });
          const double read_us = each * sizeof(float) / copy * 1e6;
          std::printf("%-20s %7d %5d %9.2f %9.2f %8.0f%%\n", kind.name, cols, num_rows, us, read_us,
                      100 * read_us / us);
          char fields[200];
          std::snprintf(fields, sizeof fields,
                        "\"row\": \"%s\", \"vocab\": %d, \"rows\": %d, \"us\": %.3f, "
                        "\"of_reading\": %.4f",
                        kind.name, cols, num_rows, us, read_us / us);
          json_.Add("SampleTokens", fields);
        }
      }
    }
  }

 private:
  std::vector<SampleRow> SetRows(const Kind& kind, int num_rows) {
    std::vector<SampleRow> rows(num_rows, kind.row);
    for (int i = 0; i < num_rows; ++i) rows[i].uniform = std::fmod(0.37 + 0.61803398875 * i, 1.0);
    BENCH_CHECK(cudaMemcpy(rows_, rows.data(), rows.size() * sizeof(SampleRow),
                           cudaMemcpyHostToDevice));
    return rows;
  }
  void Sample(int num_rows, int cols, size_t at) {
    BENCH_CHECK(kernels::cuda::LaunchSampleTokens({.logits = logits_ + at,
                                                   .row_stride = cols,
                                                   .num_rows = num_rows,
                                                   .num_cols = cols,
                                                   .rows = rows_,
                                                   .edits = nullptr,
                                                   .out = out_},
                                                  stream_));
  }

  JsonRows json_;
  cudaStream_t stream_;
  float* logits_;
  SampleRow* rows_;
  SampledRow* out_;
};

}  // namespace
}  // namespace hyserve::bench

int main(int argc, char** argv) {
  hyserve::bench::SampleTokensBench bench(argc, argv);
  if (!bench.Check()) return 1;
  bench.Time();
  return 0;
}
