#include "engine/model/config_reader.h"

#include <cmath>
#include <limits>

#include "base/strings.h"
#include "engine/model/json_reader.h"

namespace hyserve::model {
namespace {

using nlohmann::json;

// An integer of 32 bits, written as one (1.0 and 1e3 are not).
std::optional<int> AsInt(const json& value) {
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(kMax)) return static_cast<int>(number);
    return std::nullopt;
  }
  if (!value.is_number_integer()) return std::nullopt;
  const int64_t number = value.get<int64_t>();
  if (number > kMax || number < -kMax - 1) return std::nullopt;
  return static_cast<int>(number);
}

std::string Shown(const json& value) {
  return Printable(value.dump(-1, ' ', true, json::error_handler_t::replace));
}

}  // namespace

const json* ConfigReader::Find(std::string_view key) const {
  const auto found = root_.find(std::string(key));
  return found == root_.end() || found->is_null() ? nullptr : &*found;
}

void ConfigReader::Violation(std::string_view key, std::string_view reason) {
  violations_.push_back({std::string(key), std::string(reason)});
}

int ConfigReader::RequiredInt(std::string_view key) {
  if (!Has(key)) Violation(key, "missing");
  return Int(key, 0);
}

int ConfigReader::Int(std::string_view key, int default_value) {
  const json* value = Find(key);
  if (value == nullptr) return default_value;
  if (const std::optional<int> number = AsInt(*value)) return *number;
  Violation(key, StrCat("must be an integer of 32 bits; got ", Shown(*value)));
  return default_value;
}

double ConfigReader::Number(std::string_view key, double default_value) {
  const json* value = Find(key);
  if (value == nullptr) return default_value;
  if (value->is_number() && std::isfinite(value->get<double>())) return value->get<double>();
  Violation(key, StrCat("must be a number; got ", Shown(*value)));
  return default_value;
}

bool ConfigReader::Bool(std::string_view key, bool default_value) {
  const json* value = Find(key);
  if (value == nullptr) return default_value;
  if (value->is_boolean()) return value->get<bool>();
  Violation(key, StrCat("must be true or false; got ", Shown(*value)));
  return default_value;
}

std::string ConfigReader::String(std::string_view key, std::string_view default_value) {
  const json* value = Find(key);
  if (value == nullptr) return std::string(default_value);
  if (value->is_string()) return value->get<std::string>();
  Violation(key, StrCat("must be a string; got ", Shown(*value)));
  return std::string(default_value);
}

std::optional<std::vector<int>> ConfigReader::IntList(std::string_view key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int> list;
  if (value->is_array()) {
    for (const json& entry : *value) {
      const std::optional<int> number = AsInt(entry);
      if (!number.has_value()) break;
      list.push_back(*number);
    }
    if (list.size() == value->size()) return list;
  }
  Violation(key, "must be a list of integers");
  return std::nullopt;
}

std::optional<std::vector<std::string>> ConfigReader::StringList(std::string_view key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> list;
  if (value->is_array()) {
    for (const json& entry : *value) {
      if (!entry.is_string()) break;
      list.push_back(entry.get<std::string>());
    }
    if (list.size() == value->size()) return list;
  }
  Violation(key, "must be a list of strings");
  return std::nullopt;
}

std::vector<int32_t> ConfigReader::IntOrList(std::string_view key) {
  const json* value = Find(key);
  if (value == nullptr) return {};
  if (const std::optional<int> number = AsInt(*value)) return {*number};
  return IntList(key).value_or(std::vector<int>());
}

ConfigReader::Gates ConfigReader::OutputGates(std::string_view key) {
  Gates gates;
  const json* value = Find(key);
  if (value == nullptr) return gates;
  if (!value->is_object()) {
    Violation(key, "must be an object with \"full\", \"sliding\" and \"sparse\"");
    return gates;
  }
  for (const auto& [name, flag] : value->items()) {
    const std::string full_key = StrCat(key, ".", Printable(name));
    if (!flag.is_boolean()) {
      Violation(full_key, StrCat("must be true or false; got ", Shown(flag)));
    } else if (name == "full") {
      if (flag.get<bool>()) {
        Violation(full_key, "must be false: gates on full layers are not implemented");
      }
    } else if (name == "sliding") {
      gates.sliding = flag.get<bool>();
    } else if (name == "sparse") {
      gates.sparse = flag.get<bool>();
    } else {
      Violation(full_key, "unknown key");
    }
  }
  return gates;
}

}  // namespace hyserve::model
