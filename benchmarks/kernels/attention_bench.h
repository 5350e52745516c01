// Full, window and sparse attention over long contexts.
#ifndef HYSERVE_BENCHMARKS_KERNELS_ATTENTION_BENCH_H_
#define HYSERVE_BENCHMARKS_KERNELS_ATTENTION_BENCH_H_

#include <string>

#include "benchmarks/kernels/report.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::bench {

// Names that contain filter, or all.
void BenchAttention(tensor::CpuDevice& device, const std::string& filter, double seconds,
                    Report& report);

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_ATTENTION_BENCH_H_
