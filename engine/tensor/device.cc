#include "engine/tensor/device.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/tensor/cpu_device.h"
#ifdef HYSERVE_CUDA
#include "engine/tensor/cuda_device.h"
#endif

namespace hyserve::tensor {

absl::StatusOr<std::unique_ptr<Device>> Device::Create(const DeviceOptions& options) {
  if (options.name == "cpu") return CpuDevice::Create(options);
  if (options.name == "cuda" || absl::StartsWith(options.name, "cuda:")) {
#ifdef HYSERVE_CUDA
    return CudaDevice::Create(options);
#else
    return absl::InvalidArgumentError(absl::StrCat(
        "device: '", options.name, "' needs a build with CUDA (cmake -DHYSERVE_CUDA=ON)"));
#endif
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device: must be 'cpu', 'cuda' or 'cuda:N'; got '", options.name, "'"));
}

}  // namespace hyserve::tensor
