// Typed access to the keys of config.json. A value of the wrong type is noted as a violation and
// the default taken in its place, so that every fault of a file is found in one pass. null counts
// as absent.
#ifndef HYSERVE_ENGINE_MODEL_CONFIG_READER_H_
#define HYSERVE_ENGINE_MODEL_CONFIG_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/config_check.h"
#include "nlohmann/json.hpp"

namespace hyserve::model {

class ConfigReader {
 public:
  struct Gates {
    bool sliding = false;
    bool sparse = true;
  };

  // `root` must outlive the reader.
  explicit ConfigReader(const nlohmann::json& root) : root_(root) {}

  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  int RequiredInt(std::string_view key);
  int Int(std::string_view key, int default_value);
  double Number(std::string_view key, double default_value);
  bool Bool(std::string_view key, bool default_value);
  std::string String(std::string_view key, std::string_view default_value);
  // Absent: nullopt, and so is a value that is no such list (a violation then).
  std::optional<std::vector<int>> IntList(std::string_view key);
  std::optional<std::vector<std::string>> StringList(std::string_view key);
  // One integer or a list of them; empty when absent.
  std::vector<int32_t> IntOrList(std::string_view key);
  // {"full": false, "sliding": bool, "sparse": bool}
  Gates OutputGates(std::string_view key);

  void Violation(std::string_view key, std::string_view reason);
  std::vector<ConfigViolation> TakeViolations() { return std::move(violations_); }

 private:
  const nlohmann::json* Find(std::string_view key) const;

  const nlohmann::json& root_;
  std::vector<ConfigViolation> violations_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_CONFIG_READER_H_
