// Devices of tests by name, and whether there is one.
#ifndef HYSERVE_TESTS_KV_TRANSFER_TEST_DEVICE_H_
#define HYSERVE_TESTS_KV_TRANSFER_TEST_DEVICE_H_

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "kv_transfer/cuda/open_device.h"
#include "tests/kv_transfer/fake_device_memory.h"

namespace hyserve::kv_transfer {

// "cpu", "fake" or as OpenDevice() takes it; ends the process when it cannot be opened.
inline std::shared_ptr<DeviceMemory> OpenTestDevice(const std::string& name) {
  if (name == "fake") return std::make_shared<FakeDeviceMemory>();
  auto device = OpenDevice(name);
  if (device.ok()) return *std::move(device);
  std::fprintf(stderr, "%s\n", std::string(device.status().message()).c_str());
  std::exit(1);
}

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_TEST_DEVICE_H_
