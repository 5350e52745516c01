#include "kv_transfer/cuda/open_device.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kv_transfer/cuda/cuda_memory.h"

namespace hyserve::kv_transfer {

absl::StatusOr<std::shared_ptr<DeviceMemory>> OpenDevice(std::string_view name) {
  if (name == "cpu") return std::shared_ptr<DeviceMemory>();
  const std::string text(name);
  int ordinal = 0;
  if (text != "cuda" && (text.rfind("cuda:", 0) != 0 ||
                         !absl::SimpleAtoi(text.substr(5), &ordinal) || ordinal < 0)) {
    return absl::InvalidArgumentError(absl::StrCat("no such device: ", text));
  }
  auto memory = cuda::CudaMemory::Create(ordinal);
  if (!memory.ok()) return memory.status();
  return std::shared_ptr<DeviceMemory>(*std::move(memory));
}

}  // namespace hyserve::kv_transfer
