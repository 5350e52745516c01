// DevicePathPolicy by name, for command lines of tests.
#ifndef HYSERVE_TESTS_KV_TRANSFER_PATH_POLICY_H_
#define HYSERVE_TESTS_KV_TRANSFER_PATH_POLICY_H_

#include <string>

#include "kv_transfer/ucx/ucx_transport.h"

namespace hyserve::kv_transfer {

// "auto", "direct", "staged".
inline DevicePathPolicy PolicyOf(const std::string& name) {
  return name == "direct"   ? DevicePathPolicy::kDirect
         : name == "staged" ? DevicePathPolicy::kStaged
                            : DevicePathPolicy::kAuto;
}

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_PATH_POLICY_H_
