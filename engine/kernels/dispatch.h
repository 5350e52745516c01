// From an op to the implementation of its device.
#ifndef HYSERVE_ENGINE_KERNELS_DISPATCH_H_
#define HYSERVE_ENGINE_KERNELS_DISPATCH_H_

#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/kernels/cpu/cpu_ops.h"
#include "engine/tensor/cpu_device.h"
#include "engine/tensor/device.h"
#include "engine/tensor/thread_pool.h"
#ifdef HYSERVE_CUDA
#include "engine/kernels/cuda/cuda_ops.h"
#else
#include "engine/kernels/cuda/no_cuda_ops.h"
#endif

namespace hyserve::kernels {

inline absl::Status NoSuchDevice(std::string_view op) {
  return absl::UnimplementedError(
      absl::StrCat(std::string(op), ": this build has no implementation for the device"));
}

// Result is absl::Status or absl::StatusOr; on_cuda is null in a build without CUDA.
template <typename Result, typename Params, typename OnCuda>
Result Dispatch(tensor::Device& device, std::string_view op,
                Result (*on_cpu)(tensor::CpuDevice&, Params), OnCuda on_cuda,
                const std::type_identity_t<std::remove_cvref_t<Params>>& params) {
  switch (device.kind()) {
    case tensor::DeviceKind::kCpu: {
      const tensor::ScopedFlushDenormals flush_denormals;
      return on_cpu(static_cast<tensor::CpuDevice&>(device), params);
    }
    case tensor::DeviceKind::kCuda:
#ifdef HYSERVE_CUDA
    {
      auto& cuda_device = static_cast<tensor::CudaDevice&>(device);
      const absl::Status current = tensor::CudaStatus(cudaSetDevice(cuda_device.ordinal()), op);
      if (!current.ok()) return current;
      return on_cuda(cuda_device, params);
    }
#else
      break;
#endif
  }
  return NoSuchDevice(op);
}

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_DISPATCH_H_
