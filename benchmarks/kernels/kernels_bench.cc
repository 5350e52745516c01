// Times the ops of the CPU device against what the machine can do at most, measured in the same
// run.
//
//   kernels_bench [--threads=N] [--isa=auto] [--seconds=0.5] [--filter=gemm] [--commit=ID]
//                 [--out=rows.jsonl] [--clock=cpu]
//
// --clock=cpu counts processor time instead of wall time, for work on a machine that is not idle
// (with --threads=1; rows are then marked, and no claim may rest on them).
// Every op is checked against a plain loop before it is timed. Data are random.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "benchmarks/kernels/attention_bench.h"
#include "benchmarks/kernels/bench_data.h"
#include "benchmarks/kernels/ceilings.h"
#include "benchmarks/kernels/report.h"
#include "engine/kernels/ops.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::bench {
namespace {

using kernels::PackedMatrix;
using tensor::DType;
using tensor::TensorView;

std::string Flag(int argc, char** argv, const std::string& name, const std::string& otherwise) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind(prefix, 0) == 0) return argument.substr(prefix.size());
  }
  return otherwise;
}

// y = x W^T with N = K = 4096; the weights are rotated so that they come from memory.
void BenchGemm(tensor::CpuDevice& device, DType dtype, double seconds, Report& report) {
  constexpr int64_t kN = 4096, kK = 4096;
  const double peak = dtype == DType::kBF16 ? PeakBf16Gflops(device) : 0;
  const int copies = dtype == DType::kBF16 ? 12 : 6;
  std::vector<std::unique_ptr<PackedMatrix>> weights;
  HostArray first(kN, kK, dtype, 100);
  for (int i = 0; i < copies; ++i) {
    const HostArray host(kN, kK, dtype, 100 + i);
    weights.push_back(Must(kernels::PackMatrix(device, {{host.view()}})));
  }
  for (int64_t m : {1, 2, 4, 8, 32, 128, 512}) {
    const HostArray x(m, kK, DType::kF32, 7);
    HostArray y(m, kN, DType::kF32, 8);
    Must(kernels::Linear(device, {x.view(), weights[0].get(), y.view()}));
    for (int64_t i = 0; i < 50; ++i) {
      const int64_t row = i * 37 % m, col = i * 1237 % kN;
      double want = 0;
      for (int64_t k = 0; k < kK; ++k) want += double{x.At(row, k)} * double{first.At(col, k)};
      // Activations may have been rounded to bf16: 2^-9 of each term, at random.
      CheckNear(y.At(row, col), want, dtype == DType::kBF16 ? 0.4 : 2e-3, "Linear");
    }
    size_t next = 0;
    const Timing timing = Measure(seconds, [&] {
      next = (next + 1) % weights.size();
      Must(kernels::Linear(device, {x.view(), weights[next].get(), y.view()}));
    });
    report.Add("gemm " + std::string(tensor::Name(dtype)) + " 4096x4096 m=" + std::to_string(m),
               timing, 2.0 * m * kN * kK, static_cast<double>(kN * kK * tensor::SizeOf(dtype)),
               peak);
  }
}

int Main(int argc, char** argv) {
  const double seconds = std::atof(Flag(argc, argv, "seconds", "0.5").c_str());
  const std::string filter = Flag(argc, argv, "filter", "");
  const bool cpu_clock = Flag(argc, argv, "clock", "wall") == "cpu";
  if (cpu_clock) UseCpuClock();
  auto device = Must(tensor::CpuDevice::Create(
      {"cpu", std::atoi(Flag(argc, argv, "threads", "0").c_str()),
       Flag(argc, argv, "isa", "auto")}));
  Report report(Flag(argc, argv, "out", ""), Flag(argc, argv, "commit", "unknown"),
                ProcessorName() + ", " + device->Description() + (cpu_clock ? ", CPU clock" : ""),
                device->pool().num_threads());
  const auto wanted = [&](const std::string& name) {
    return filter.empty() || name.find(filter) != std::string::npos;
  };
  report.SetCeilings(PeakGflops(*device), ReadGbPerSecond(*device));
  if (wanted("gemm bf16")) BenchGemm(*device, DType::kBF16, seconds, report);
  if (wanted("gemm f32")) BenchGemm(*device, DType::kF32, seconds, report);
  BenchAttention(*device, filter, seconds, report);
  return 0;
}

}  // namespace
}  // namespace hyserve::bench

int main(int argc, char** argv) { return hyserve::bench::Main(argc, argv); }
