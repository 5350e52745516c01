// hyserve: the command line.
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "services/cli/commands.h"

namespace hyserve::cli {

int Fail(std::string_view command, const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "hyserve %.*s: %s\n", static_cast<int>(command.size()), command.data(),
               std::string(status.message()).c_str());
  return exit_code;
}

}  // namespace hyserve::cli

int main(int argc, char** argv) {
  using Command = int (*)(const std::vector<std::string>&);
  const std::map<std::string, Command> commands = {
      {"up", hyserve::cli::RunUp},
      {"generate", hyserve::cli::RunGenerate},
      {"model", hyserve::cli::RunModel},
      {"doctor", hyserve::cli::RunDoctor},
  };
  const std::vector<std::string> words(argv + (argc > 1 ? 2 : 1), argv + argc);
  const auto command = argc > 1 ? commands.find(argv[1]) : commands.end();
  if (command != commands.end()) return command->second(words);
  std::fputs(
      "usage: hyserve COMMAND [ARGUMENTS]\n"
      "  up       --config FILE             start router, prefill and decode on this machine\n"
      "  generate [--server HOST:PORT] ...  send a prompt, stream the answer\n"
      "  model    inspect | make | check    look at, write or verify a checkpoint\n"
      "  doctor   --config FILE             measure the links between workers\n",
      stderr);
  const std::string word = argc > 1 ? argv[1] : "";
  return word == "help" || word == "--help" ? 0 : hyserve::cli::kExitUsage;
}
