// Configurations by name, for benchmarks, reports and `hyserve model make`.
//
// Every preset has two twins of the same shape for comparison: "<name>-full" (every layer full, no
// gates, no sinks) and "<name>-swa" (sliding layers in the place of the sparse ones).
//   tiny      4 layers, 64 wide: tests
//   demo      the shape of models/demo
//   0.3b      about 0.3 B parameters: the CPU benchmarks
//   7b        the 7B of arXiv 2602.03560: 36 layers, 1 full to 3 sparse, the last full
//   80b-a3b   its 80B in the 192/128 form: 49 layers, 1 full to 11 sparse, 512 experts, 8 a token
// What the papers leave open (expert width, vocabulary, rotary width) is chosen as in
// models/README.md.
#ifndef HYSERVE_ENGINE_MODEL_PRESETS_H_
#define HYSERVE_ENGINE_MODEL_PRESETS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"

namespace hyserve::model {

// NOT_FOUND lists the names.
absl::StatusOr<ModelConfig> Preset(std::string_view name);

// All names, twins included.
std::vector<std::string> PresetNames();

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_PRESETS_H_
