// Every key that config.json may have, and what is done with it.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_KEYS_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_KEYS_H_

#include <vector>

#include "engine/model/config_check.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {

// One violation per key that is unknown, or that would change the arithmetic in a way that is not
// implemented. A key whose value is null counts as absent.
std::vector<ConfigViolation> FindKeyViolations(const nlohmann::json& root);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_KEYS_H_
