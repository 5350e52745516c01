#include "services/common/config.h"

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "base/strings.h"

namespace hyserve::common {

absl::StatusOr<WorkerSettings> Config::FindWorker(std::string_view role,
                                                  std::string_view name) const {
  std::vector<std::string> names;
  const WorkerSettings* found = nullptr;
  int matches = 0;
  for (const WorkerSettings& worker : workers) {
    if (!role.empty() && worker.role != role) continue;
    names.push_back(worker.name);
    if (!name.empty() && worker.name != name) continue;
    found = &worker;
    ++matches;
  }
  const std::string exist =
      names.empty() ? "there are none" : StrCat("there are: ", absl::StrJoin(names, ", "));
  const std::string wanted = StrCat(role, role.empty() ? "" : " ", "worker",
                                    name.empty() ? "" : " ", name);
  if (matches == 0) return absl::NotFoundError(StrCat("no ", wanted, "; ", exist));
  if (matches > 1) {
    return absl::InvalidArgumentError(
        StrCat("more than one ", wanted, ": give --name; ", exist));
  }
  return *found;
}

absl::StatusOr<ServerFlags> ParseServerFlags(int argc, char** argv) {
  ServerFlags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--check-config") {
      flags.check_config = true;
      continue;
    }
    if (word == "--help") {
      flags.help = true;
      return flags;
    }
    const size_t equals = word.find('=');
    const std::string flag = word.substr(0, equals);
    std::string* const out = flag == "--config" ? &flags.config_path
                             : flag == "--name" ? &flags.name
                             : flag == "--role" ? &flags.role
                                                : nullptr;
    if (out == nullptr) return absl::InvalidArgumentError(StrCat("unknown flag ", word));
    if (equals != std::string::npos) {
      *out = word.substr(equals + 1);
    } else if (i + 1 < argc && !absl::StartsWith(argv[i + 1], "--")) {
      *out = argv[++i];
    }
    if (out->empty()) return absl::InvalidArgumentError(StrCat(flag, " needs a value"));
  }
  if (flags.config_path.empty()) return absl::InvalidArgumentError("--config FILE is required");
  return flags;
}

}  // namespace hyserve::common
