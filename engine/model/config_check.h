// Ranges and relations that a ModelConfig must satisfy, wherever it came from.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_CHECK_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_CHECK_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/config.h"

namespace hyserve::model {

struct ConfigViolation {
  std::string key;     // of config.json
  std::string reason;  // "must be 64; got 32"
};

// Every violation, in the order of the checks. Nothing of `config` is taken for granted.
std::vector<ConfigViolation> FindConfigViolations(const ModelConfig& config);

// INVALID_ARGUMENT with one line "<name>: <key>: <reason>" per violation. A key is named once, with
// its first violation.
absl::Status ConfigStatus(const std::vector<ConfigViolation>& violations, std::string_view name);

// The two together, for a config that was built in code.
absl::Status CheckModelConfig(const ModelConfig& config, std::string_view name);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_CHECK_H_
