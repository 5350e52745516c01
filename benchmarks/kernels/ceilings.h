// What this machine can do at most, measured with loops that do nothing else.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CEILINGS_H_
#define HYSERVE_BENCHMARKS_KERNELS_CEILINGS_H_

#include "engine/tensor/cpu_device.h"

namespace hyserve::bench {

// f32 multiply-adds on all threads of the device, counted as two operations each.
double PeakGflops(tensor::CpuDevice& device);
// The same for products of bf16 pairs into f32; 0 where the device does not use them.
double PeakBf16Gflops(tensor::CpuDevice& device);
// Sequential reads of a buffer larger than any cache, on all threads of the device.
double ReadGbPerSecond(tensor::CpuDevice& device);

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CEILINGS_H_
