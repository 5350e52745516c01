#include "services/cli/args.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace hyserve::cli {

absl::StatusOr<Args> Args::Parse(const std::vector<std::string>& words, const ArgSpec& spec) {
  Args args;
  bool only_positionals = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_positionals || word.size() < 3 || word.compare(0, 2, "--") != 0) {
      if (word == "--" && !only_positionals) {
        only_positionals = true;
      } else {
        args.positionals_.push_back(word);
      }
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::string value;
    if (spec.flags.count(name) != 0) {
      if (equals != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--", name, " takes no value"));
      }
    } else if (spec.options.count(name) != 0) {
      if (equals != std::string::npos) {
        value = word.substr(equals + 1);
      } else if (i + 1 < words.size()) {
        value = words[++i];
      } else {
        return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
      }
    } else {
      return absl::InvalidArgumentError(absl::StrCat("unknown option --", name));
    }
    if (!args.values_.emplace(name, value).second) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " is given twice"));
    }
  }
  const int count = static_cast<int>(args.positionals_.size());
  if (count < spec.min_positionals || count > spec.max_positionals) {
    return absl::InvalidArgumentError(
        count > spec.max_positionals
            ? absl::StrCat("unexpected argument '", args.positionals_[spec.max_positionals], "'")
            : absl::StrCat("expected ", spec.min_positionals, " argument(s), got ", count));
  }
  return args;
}

std::string Args::Get(std::string_view name, std::string_view fallback) const {
  const auto found = values_.find(std::string(name));
  return found == values_.end() ? std::string(fallback) : found->second;
}

absl::StatusOr<int64_t> Args::GetInt(std::string_view name, int64_t fallback, int64_t min,
                                     int64_t max) const {
  if (!Has(name)) return fallback;
  int64_t value = 0;
  if (!absl::SimpleAtoi(Get(name), &value) || value < min || value > max) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--%s must be a whole number in [%d, %d]; got '%s'", name, min, max, Get(name)));
  }
  return value;
}

absl::StatusOr<double> Args::GetDouble(std::string_view name, double fallback) const {
  if (!Has(name)) return fallback;
  double value = 0;
  if (!absl::SimpleAtod(Get(name), &value) || !std::isfinite(value)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--%s must be a number; got '%s'", name, Get(name)));
  }
  return value;
}

}  // namespace hyserve::cli
