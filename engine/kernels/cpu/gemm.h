// y = x W^T for one or several matrices at once.
//
// Order of every sum: one chain of multiply-adds over ascending K. Large K is cut into blocks whose
// chain goes on through memory (f32, so nothing is rounded twice), and few rows take a path that
// reads each weight once; neither changes the chain.
#ifndef HYSERVE_ENGINE_KERNELS_CPU_GEMM_H_
#define HYSERVE_ENGINE_KERNELS_CPU_GEMM_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/kernels/cpu/packed_matrix.h"
#include "engine/tensor/cpu_device.h"

namespace hyserve::kernels::cpu {

struct GemmProblem {
  const float* x = nullptr;  // [num_rows, K], x_stride elements from row to row
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  const CpuPackedMatrix* weight = nullptr;  // [N, K]
  float* y = nullptr;                       // [num_rows, N]
  int64_t y_stride = 0;
};

// Runs all problems with one hand-over to the threads. RESOURCE_EXHAUSTED when the workspace for
// packed activations cannot grow.
absl::Status RunGemms(tensor::CpuDevice& device, std::span<const GemmProblem> problems);

}  // namespace hyserve::kernels::cpu

#endif  // HYSERVE_ENGINE_KERNELS_CPU_GEMM_H_
