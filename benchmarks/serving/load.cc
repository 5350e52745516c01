// hyserve-load: puts load on a router and prints one line of JSON.
#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/serving/load_client.h"
#include "services/cli/args.h"

int main(int argc, char** argv) {
  using hyserve::cli::Args;
  const absl::StatusOr<Args> args =
      Args::Parse(std::vector<std::string>(argv + 1, argv + argc),
                  {.options = {"server", "requests", "rate", "concurrency", "prompt-tokens",
                               "shared-prefix-tokens", "max-tokens", "vocab-size", "seed",
                               "channels", "timeout", "temperature", "top-p"}});
  hyserve::benchmarks::LoadSpec spec;
  absl::Status status = args.status();
  const auto read = [&](const char* name, auto* out, int64_t min) {
    if (!status.ok()) return;
    const auto value = args->GetInt(name, static_cast<int64_t>(*out), min, int64_t{1} << 31);
    if (value.ok()) {
      *out = static_cast<std::remove_pointer_t<decltype(out)>>(*value);
    } else {
      status = value.status();
    }
  };
  read("requests", &spec.num_requests, 1);
  read("concurrency", &spec.concurrency, 1);
  read("prompt-tokens", &spec.prompt_tokens, 1);
  read("shared-prefix-tokens", &spec.shared_prefix_tokens, 0);
  read("max-tokens", &spec.max_tokens, 1);
  read("vocab-size", &spec.vocab_size, 1);
  read("seed", &spec.seed, 0);
  read("channels", &spec.channels, 1);
  if (status.ok()) {
    const auto rate = args->GetDouble("rate", 0);
    const auto timeout = args->GetDouble("timeout", 600);
    const auto temperature = args->GetDouble("temperature", spec.temperature);
    const auto top_p = args->GetDouble("top-p", spec.top_p);
    for (const auto* number : {&rate, &timeout, &temperature, &top_p}) {
      if (status.ok()) status = number->status();
    }
    if (status.ok() && spec.vocab_size < 1) {
      status = absl::InvalidArgumentError("--vocab-size is needed");
    }
    if (status.ok()) {
      spec.requests_per_second = *rate;
      spec.timeout_seconds = *timeout;
      spec.temperature = *temperature;
      spec.top_p = *top_p;
      spec.server = args->Get("server", spec.server);
    }
  }
  if (!status.ok()) {
    std::fprintf(stderr, "hyserve-load: %s\n", std::string(status.message()).c_str());
    return 64;
  }
  std::puts(ToJson(spec, hyserve::benchmarks::RunLoad(spec)).c_str());
  return 0;
}
