#include "services/common/config_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "base/strings.h"
#include "services/common/yaml_tree.h"

namespace hyserve::common {
namespace {

using internal::ConfigProblems;
using internal::YamlNode;
using internal::YamlPosition;

constexpr size_t kMaxShownBytes = 64;

// A value of the file, safe to print.
std::string Shown(std::string_view value) {
  std::string out;
  for (const char c : value.substr(0, kMaxShownBytes)) {
    const bool printable = static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
    out.push_back(printable ? c : '?');
  }
  if (value.size() > kMaxShownBytes) out += "...";
  return StrCat("\"", out, "\"");
}

// Levenshtein distance, two rows.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

std::string Suggestion(std::string_view key, const std::set<std::string, std::less<>>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, key.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(key, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best.empty() ? "" : StrCat("; did you mean \"", best, "\"?");
}

// A decimal whole number written without leading zeros, plus sign, base prefix or separators.
std::optional<int64_t> ParseInt(std::string_view text) {
  const std::string_view digits = !text.empty() && text[0] == '-' ? text.substr(1) : text;
  if (digits.empty() || digits.size() > 19) return std::nullopt;
  if (digits.size() > 1 && digits[0] == '0') return std::nullopt;
  if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit)) return std::nullopt;
  int64_t value = 0;
  if (!absl::SimpleAtoi(ToAbsl(text), &value)) return std::nullopt;
  return value;
}

// A finite decimal number: [-]digits[.digits][e[+-]digits], no leading zeros.
std::optional<double> ParseDouble(std::string_view text) {
  std::string_view rest = text;
  if (!rest.empty() && rest[0] == '-') rest.remove_prefix(1);
  if (rest.empty() || !absl::ascii_isdigit(rest[0])) return std::nullopt;
  if (rest.size() > 1 && rest[0] == '0' && absl::ascii_isdigit(rest[1])) return std::nullopt;
  for (const char c : rest) {
    if (!absl::ascii_isdigit(c) && c != '.' && c != 'e' && c != '-' && c != '+')
      return std::nullopt;
  }
  double value = 0;
  if (!absl::SimpleAtod(ToAbsl(text), &value) || !std::isfinite(value)) return std::nullopt;
  return value;
}

struct Unit {
  std::string_view name;
  double factor;
};
constexpr Unit kSizeUnits[] = {
    {"B", 1}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
constexpr Unit kTimeUnits[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"min", 60}, {"h", 3600}};

// Splits "500ms" into number and unit.
template <size_t N>
std::optional<double> ParseWithUnit(std::string_view text, const Unit (&units)[N]) {
  const size_t split = std::find_if(text.begin(), text.end(), absl::ascii_isalpha) - text.begin();
  const std::optional<double> number = ParseDouble(text.substr(0, split));
  if (!number.has_value()) return std::nullopt;
  for (const Unit& unit : units) {
    if (text.substr(split) == unit.name) return *number * unit.factor;
  }
  return std::nullopt;
}

std::string BytesText(int64_t bytes) {
  for (size_t i = std::size(kSizeUnits); i-- > 0;) {
    const auto factor = static_cast<int64_t>(kSizeUnits[i].factor);
    if (bytes % factor == 0 && bytes != 0) return StrCat(bytes / factor, kSizeUnits[i].name);
  }
  return StrCat(bytes, "B");
}

std::string JoinWords(std::initializer_list<std::string_view> words) {
  std::string text;
  for (const std::string_view word : words) StrAppend(&text, text.empty() ? "" : ", ", word);
  return text;
}

absl::Status MakeStatus(std::string_view name, ConfigProblems problems) {
  if (problems.problems.empty()) return absl::OkStatus();
  std::stable_sort(problems.problems.begin(), problems.problems.end(),
                   [](const auto& a, const auto& b) { return a.position < b.position; });
  std::string text;
  for (const ConfigProblems::Problem& problem : problems.problems) {
    StrAppend(&text, text.empty() ? "" : "\n", name, ":", problem.position.line, ":",
              problem.position.column, ": ", problem.path, problem.path.empty() ? "" : ": ",
              problem.reason);
  }
  return absl::InvalidArgumentError(text);
}

}  // namespace

ConfigTable::ConfigTable(const YamlNode* node, std::string path, ConfigProblems* problems)
    : node_(node), path_(std::move(path)), problems_(problems) {}

ConfigTable::~ConfigTable() {
  if (node_ == nullptr) return;
  for (const YamlNode::Entry& entry : node_->entries) {
    if (known_keys_.contains(entry.key)) continue;
    problems_->Add(entry.position, path_ + entry.key,
                   StrCat("unknown key", Suggestion(entry.key, known_keys_)));
  }
}

const YamlNode* ConfigTable::Find(std::string_view key) {
  known_keys_.emplace(key);
  if (node_ == nullptr) return nullptr;
  for (const YamlNode::Entry& entry : node_->entries) {
    if (entry.key == key) return entry.value.get();
  }
  return nullptr;
}

const YamlNode* ConfigTable::FindScalar(std::string_view key, std::string_view wanted) {
  const YamlNode* const value = Find(key);
  if (value == nullptr) return nullptr;
  if (value->kind == YamlNode::Kind::kScalar) return value;
  problems_->Add(value->position, StrCat(path_, key), StrCat("must be ", wanted));
  return nullptr;
}

bool ConfigTable::Has(std::string_view key) const {
  return node_ != nullptr && std::any_of(node_->entries.begin(), node_->entries.end(),
                                         [&](const auto& entry) { return entry.key == key; });
}

bool ConfigTable::IsList(std::string_view key) const {
  if (node_ == nullptr) return false;
  for (const YamlNode::Entry& entry : node_->entries) {
    if (entry.key == key) return entry.value->kind == YamlNode::Kind::kSequence;
  }
  return false;
}

void ConfigTable::Problem(std::string_view key, std::string_view reason) {
  YamlPosition position = node_ == nullptr ? YamlPosition{} : node_->position;
  if (node_ != nullptr) {
    for (const YamlNode::Entry& entry : node_->entries) {
      if (entry.key == key) position = entry.value->position;
    }
  }
  problems_->Add(position, StrCat(path_, key), reason);
}

void ConfigTable::Require(std::string_view key) {
  if (Find(key) == nullptr) Problem(key, "missing");
}

void ConfigTable::String(std::string_view key, std::string* out, size_t max_bytes) {
  const YamlNode* const value = FindScalar(key, "a text");
  if (value == nullptr) return;
  if (value->scalar.size() > max_bytes) {
    return Problem(key, StrCat("longer than ", max_bytes, " bytes"));
  }
  *out = value->scalar;
}

void ConfigTable::Bool(std::string_view key, bool* out) {
  const YamlNode* const value = FindScalar(key, "true or false");
  if (value == nullptr) return;
  const bool is_true = value->scalar == "true";
  if (value->quoted || (!is_true && value->scalar != "false")) {
    return Problem(key, StrCat("must be true or false; got ", Shown(value->scalar)));
  }
  *out = is_true;
}

void ConfigTable::Int(std::string_view key, int64_t* out, int64_t min, int64_t max) {
  const YamlNode* const value = FindScalar(key, "a whole number");
  if (value == nullptr) return;
  const std::optional<int64_t> number = value->quoted ? std::nullopt : ParseInt(value->scalar);
  if (!number.has_value()) {
    return Problem(key, StrCat("must be a whole number (decimal, no leading zeros); got ",
                               Shown(value->scalar)));
  }
  if (*number < min || *number > max) {
    return Problem(key, StrCat("must be in [", min, ", ", max, "]; got ", *number));
  }
  *out = *number;
}

void ConfigTable::Int(std::string_view key, int32_t* out, int32_t min, int32_t max) {
  int64_t value = *out;
  Int(key, &value, int64_t{min}, int64_t{max});
  *out = static_cast<int32_t>(value);
}

void ConfigTable::Double(std::string_view key, double* out, double min, double max) {
  const YamlNode* const value = FindScalar(key, "a number");
  if (value == nullptr) return;
  const std::optional<double> number = value->quoted ? std::nullopt : ParseDouble(value->scalar);
  if (!number.has_value()) {
    return Problem(key, StrCat("must be a finite number; got ", Shown(value->scalar)));
  }
  if (*number < min || *number > max) {
    return Problem(key, StrCat("must be in [", min, ", ", max, "]; got ", *number));
  }
  *out = *number;
}

void ConfigTable::Bytes(std::string_view key, int64_t* out, int64_t min, int64_t max) {
  const YamlNode* const value = FindScalar(key, "a size with a unit");
  if (value == nullptr) return;
  const std::optional<double> bytes = ParseWithUnit(value->scalar, kSizeUnits);
  if (!bytes.has_value() || *bytes != std::floor(*bytes) || std::abs(*bytes) > 9.0e15) {
    return Problem(key, StrCat("must be a size with a unit (B, KiB, MiB, GiB, TiB); got ",
                               Shown(value->scalar)));
  }
  if (*bytes < static_cast<double>(min) || *bytes > static_cast<double>(max)) {
    return Problem(key, StrCat("must be in [", BytesText(min), ", ", BytesText(max), "]; got ",
                               Shown(value->scalar)));
  }
  *out = static_cast<int64_t>(*bytes);
}

bool ConfigTable::BytesOrShare(std::string_view key, int64_t* bytes, double* share,
                               double automatic, int64_t min, int64_t max) {
  const YamlNode* const value = FindScalar(key, "a size with a unit, a percentage or auto");
  if (value == nullptr) return false;
  const std::string_view text = value->scalar;
  if (text == "auto") {
    *share = automatic;
    return true;
  }
  if (!text.empty() && text.back() == '%') {
    const std::optional<double> percent = ParseDouble(text.substr(0, text.size() - 1));
    if (percent.has_value() && *percent >= 1 && *percent <= 100) {
      *share = *percent / 100;
      return true;
    }
    Problem(key, StrCat("must be between 1% and 100%; got ", Shown(text)));
    return false;
  }
  *share = 0;
  Bytes(key, bytes, min, max);
  return false;
}

void ConfigTable::Duration(std::string_view key, absl::Duration* out, absl::Duration min,
                           absl::Duration max) {
  const YamlNode* const value = FindScalar(key, "a duration with a unit");
  if (value == nullptr) return;
  const std::optional<double> seconds = ParseWithUnit(value->scalar, kTimeUnits);
  if (!seconds.has_value()) {
    return Problem(key, StrCat("must be a duration with a unit (us, ms, s, min, h); got ",
                               Shown(value->scalar)));
  }
  const absl::Duration duration = absl::Seconds(*seconds);
  if (duration < min || duration > max) {
    return Problem(key, StrCat("must be in [", absl::FormatDuration(min), ", ",
                               absl::FormatDuration(max), "]; got ", Shown(value->scalar)));
  }
  *out = duration;
}

void ConfigTable::Enum(std::string_view key, std::string* out,
                       std::initializer_list<std::string_view> values) {
  const YamlNode* const value = FindScalar(key, "a word");
  if (value == nullptr) return;
  if (std::find(values.begin(), values.end(), value->scalar) == values.end()) {
    return Problem(key, StrCat("must be one of ", JoinWords(values), "; got ",
                               Shown(value->scalar),
                               Suggestion(value->scalar, {values.begin(), values.end()})));
  }
  *out = value->scalar;
}

void ConfigTable::Address(std::string_view key, std::string* out) {
  const YamlNode* const value = FindScalar(key, "host:port");
  if (value == nullptr) return;
  const std::string_view text = value->scalar;
  const size_t colon = text.rfind(':');
  const std::optional<int64_t> port =
      colon == std::string_view::npos ? std::nullopt : ParseInt(text.substr(colon + 1));
  if (!port.has_value() || *port < 0 || *port > 65535 || colon == 0 || text.size() > 300 ||
      text.find_first_of(" /\t@?#") != std::string_view::npos) {
    return Problem(key, StrCat("must be host:port, port 0 to 65535; got ", Shown(text)));
  }
  *out = std::string(text);
}

void ConfigTable::StringList(std::string_view key, std::vector<std::string>* out,
                             size_t max_items) {
  const YamlNode* const value = Find(key);
  if (value == nullptr) return;
  if (value->kind != YamlNode::Kind::kSequence) return Problem(key, "must be a list");
  if (value->items.size() > max_items) {
    return Problem(key, StrCat("has more than ", max_items, " items"));
  }
  std::vector<std::string> items;
  for (const auto& item : value->items) {
    if (item->kind != YamlNode::Kind::kScalar) {
      problems_->Add(item->position, StrCat(path_, key, "[", items.size(), "]"),
                     "must be a text");
      return;
    }
    items.push_back(item->scalar);
  }
  *out = std::move(items);
}

void ConfigTable::Table(std::string_view key, absl::FunctionRef<void(ConfigTable&)> schema) {
  const YamlNode* value = Find(key);
  // "section:" with nothing below it is an empty section.
  if (value != nullptr && value->kind != YamlNode::Kind::kMapping) {
    if (value->kind != YamlNode::Kind::kNull) Problem(key, "must be a section (key: value lines)");
    value = nullptr;
  }
  ConfigTable table(value, StrCat(path_, key, "."), problems_);
  schema(table);
}

void ConfigTable::List(std::string_view key, size_t max_items,
                       absl::FunctionRef<void(ConfigTable&)> schema) {
  const YamlNode* const value = Find(key);
  if (value == nullptr) return;
  if (value->kind != YamlNode::Kind::kSequence) return Problem(key, "must be a list");
  if (value->items.size() > max_items) {
    return Problem(key, StrCat("has more than ", max_items, " items"));
  }
  for (size_t i = 0; i < value->items.size(); ++i) {
    const YamlNode* const item = value->items[i].get();
    const std::string path = StrCat(path_, key, "[", i, "]");
    if (item->kind != YamlNode::Kind::kMapping) {
      problems_->Add(item->position, path, "must be a section (key: value lines)");
      continue;
    }
    ConfigTable table(item, StrCat(path, "."), problems_);
    schema(table);
  }
}

absl::Status ReadConfigText(std::string_view text, std::string_view name,
                            absl::FunctionRef<void(ConfigTable&)> schema) {
  ConfigProblems problems;
  if (text.size() > kMaxConfigFileBytes) {
    problems.Add({1, 1}, "", StrCat("larger than ", BytesText(kMaxConfigFileBytes)));
    return MakeStatus(name, std::move(problems));
  }
  const std::unique_ptr<YamlNode> root = internal::ParseYaml(text, &problems);
  if (root == nullptr) return MakeStatus(name, std::move(problems));
  if (root->kind != YamlNode::Kind::kMapping) {
    problems.Add(root->position, "", "must be sections (key: value lines)");
    return MakeStatus(name, std::move(problems));
  }
  {
    ConfigTable table(root.get(), "", &problems);
    schema(table);
  }
  return MakeStatus(name, std::move(problems));
}

absl::Status ReadConfigFile(const std::string& path, absl::FunctionRef<void(ConfigTable&)> schema) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(StrCat(path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(StrCat(path, ": not a regular file"));
  }
  if (static_cast<size_t>(info.st_size) > kMaxConfigFileBytes) {
    return absl::InvalidArgumentError(
        StrCat(path, ":1:1: larger than ", BytesText(kMaxConfigFileBytes)));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(StrCat(path, ": ", std::strerror(errno)));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return ReadConfigText(text, path, schema);
}

}  // namespace hyserve::common
