// YAML text as a tree with positions, with everything refused that a configuration must not have.
// An implementation detail of config_reader.
#ifndef HYSERVE_SERVICES_COMMON_YAML_TREE_H_
#define HYSERVE_SERVICES_COMMON_YAML_TREE_H_

#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace hyserve::common::internal {

struct YamlPosition {
  int line = 1;  // from 1
  int column = 1;
  bool operator<(const YamlPosition& other) const {
    return std::tie(line, column) < std::tie(other.line, other.column);
  }
};

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMapping };
  struct Entry {
    std::string key;
    YamlPosition position;  // of the key
    std::unique_ptr<YamlNode> value;
  };

  Kind kind = Kind::kNull;
  YamlPosition position;
  std::string scalar;
  bool quoted = false;
  std::vector<std::unique_ptr<YamlNode>> items;  // of a sequence
  std::vector<Entry> entries;                    // of a mapping, in the order of the file
};

// Problems of a file, gathered over the whole reading.
struct ConfigProblems {
  struct Problem {
    YamlPosition position;
    std::string path;  // dotted; may be empty
    std::string reason;
  };
  std::vector<Problem> problems;
  void Add(YamlPosition position, std::string_view path, std::string_view reason) {
    problems.push_back({position, std::string(path), std::string(reason)});
  }
};

// Null if the text could not be read at all; problems say why. A tree may come with problems.
std::unique_ptr<YamlNode> ParseYaml(std::string_view text, ConfigProblems* problems);

}  // namespace hyserve::common::internal

#endif  // HYSERVE_SERVICES_COMMON_YAML_TREE_H_
