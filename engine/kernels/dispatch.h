// From an op to the implementation of its device.
#ifndef HYSERVE_ENGINE_KERNELS_DISPATCH_H_
#define HYSERVE_ENGINE_KERNELS_DISPATCH_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/tensor/cpu_device.h"
#include "engine/tensor/device.h"
#include "engine/tensor/thread_pool.h"

namespace hyserve::kernels {

inline absl::Status NoSuchDevice(std::string_view op) {
  return absl::UnimplementedError(
      absl::StrCat(std::string(op), ": this build has no implementation for the device"));
}

template <typename Params>
absl::Status Dispatch(tensor::Device& device, std::string_view op,
                      absl::Status (*on_cpu)(tensor::CpuDevice&, const Params&),
                      const Params& params) {
  if (device.kind() != tensor::DeviceKind::kCpu) return NoSuchDevice(op);
  const tensor::ScopedFlushDenormals flush_denormals;
  return on_cpu(static_cast<tensor::CpuDevice&>(device), params);
}

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_DISPATCH_H_
