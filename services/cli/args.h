// Command-line arguments of one subcommand: --name value, --name=value, --flag, and positionals.
#ifndef HYSERVE_SERVICES_CLI_ARGS_H_
#define HYSERVE_SERVICES_CLI_ARGS_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::cli {

// What a subcommand accepts. Anything else is refused by name.
struct ArgSpec {
  std::set<std::string> options = {};  // take a value
  std::set<std::string> flags = {};    // take none
  int min_positionals = 0;
  int max_positionals = 0;
};

class Args {
 public:
  // INVALID_ARGUMENT: unknown option, missing value, option given twice, wrong positional count.
  static absl::StatusOr<Args> Parse(const std::vector<std::string>& words, const ArgSpec& spec);

  bool Has(std::string_view name) const { return values_.count(std::string(name)) != 0; }
  std::string Get(std::string_view name, std::string_view fallback = "") const;
  // INVALID_ARGUMENT unless the value is a whole number in [min, max] (a finite number for floats).
  absl::StatusOr<int64_t> GetInt(std::string_view name, int64_t fallback, int64_t min,
                                 int64_t max) const;
  absl::StatusOr<double> GetDouble(std::string_view name, double fallback) const;
  const std::vector<std::string>& positionals() const { return positionals_; }

 private:
  std::map<std::string, std::string> values_;
  std::vector<std::string> positionals_;
};

}  // namespace hyserve::cli

#endif  // HYSERVE_SERVICES_CLI_ARGS_H_
