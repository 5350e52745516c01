#include "absl/strings/str_cat.h"
#include "kv_transfer/cuda/open_device.h"

namespace hyserve::kv_transfer {

absl::StatusOr<std::shared_ptr<DeviceMemory>> OpenDevice(std::string_view name) {
  if (name == "cpu") return std::shared_ptr<DeviceMemory>();
  if (name.substr(0, 4) == "cuda") {
    return absl::UnimplementedError("this build has no CUDA (HYSERVE_CUDA is off)");
  }
  return absl::InvalidArgumentError(absl::StrCat("no such device: ", std::string(name)));
}

}  // namespace hyserve::kv_transfer
