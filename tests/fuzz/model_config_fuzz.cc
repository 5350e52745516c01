// config.json from anyone: refused with a line per fault, or a config that can be worked with and
// written back.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/model/config.h"
#include "engine/model/config_check.h"
#include "engine/model/config_json.h"
#include "engine/model/inspect.h"
#include "engine/model/layout.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hyserve::model;
  const auto config =
      ParseModelConfig(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!config.ok()) {
    // Every line names the file and what is wrong with it.
    const std::string message(config.status().message());
    for (size_t begin = 0; begin < message.size();) {
      const size_t end = std::min(message.find('\n', begin), message.size());
      Require(message.compare(begin, 6, "fuzz: ") == 0 && end - begin > 6);
      begin = end + 1;
    }
    return 0;
  }
  Require(CheckModelConfig(*config, "fuzz").ok());
  const auto again = ParseModelConfig(ConfigToJson(*config, ""), "again");
  Require(again.ok());
  Require(*again == *config);
  const auto layout = MakeKvLayout(*config, hyserve::tensor::DType::kBF16, "");
  Require(static_cast<int64_t>(layout.slab_bytes) == 2 * RingValues(*config));
  Require(static_cast<int64_t>(layout.block_bytes()) == 128 * PageValuesPerToken(*config));
  Require(!layout.Fingerprint().empty());
  return 0;
}
