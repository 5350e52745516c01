// The device of a worker's cached state, by the name that the configuration gives it.
#ifndef HYSERVE_KV_TRANSFER_CUDA_OPEN_DEVICE_H_
#define HYSERVE_KV_TRANSFER_CUDA_OPEN_DEVICE_H_

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kv_transfer/device_memory.h"

namespace hyserve::kv_transfer {

// Null for "cpu". "cuda" and "cuda:N": that GPU; UNIMPLEMENTED in a build without CUDA,
// FAILED_PRECONDITION without a usable driver, INVALID_ARGUMENT for another name or no such GPU.
absl::StatusOr<std::shared_ptr<DeviceMemory>> OpenDevice(std::string_view name);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_CUDA_OPEN_DEVICE_H_
