// hyserve generate: one prompt, streamed.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "hyserve/v1/inference.grpc.pb.h"
#include "services/cli/args.h"
#include "services/cli/commands.h"

namespace hyserve::cli {
namespace {

constexpr char kUsage[] =
    "usage: hyserve generate [PROMPT | --file FILE | -] [options]\n"
    "  --server HOST:PORT   router, default 127.0.0.1:8470\n"
    "  --file FILE          read the prompt from FILE; '-' or no prompt: from standard input\n"
    "  --chat               send the prompt as a user message through the chat template\n"
    "  --max-tokens N       default 64\n"
    "  --temperature T      default 0 (greedy); --top-p P, --top-k K, --seed S\n"
    "  --stop TEXT          end before this text\n"
    "  --timeout SECONDS    default 600\n"
    "  --ignore-eos         go on after the model's end token\n"
    "  --stats              print timings and shipped bytes on standard error\n";

absl::StatusOr<std::string> ReadPrompt(const Args& args) {
  const bool has_text = !args.positionals().empty() && args.positionals()[0] != "-";
  if (has_text && args.Has("file")) {
    return absl::InvalidArgumentError("give the prompt as an argument or as --file, not both");
  }
  if (has_text) return args.positionals()[0];
  std::stringstream text;
  if (args.Has("file") && args.Get("file") != "-") {
    std::ifstream file(args.Get("file"), std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", args.Get("file")));
    text << file.rdbuf();
  } else {
    text << std::cin.rdbuf();
  }
  return text.str();
}

absl::Status FillRequest(const Args& args, std::string prompt, v1::GenerateRequest* request) {
  const auto max_tokens = args.GetInt("max-tokens", 64, 1, 1 << 20);
  const auto temperature = args.GetDouble("temperature", 0);
  const auto top_p = args.GetDouble("top-p", 1);
  const auto top_k = args.GetInt("top-k", 0, 0, 1 << 30);
  const auto seed = args.GetInt("seed", 0, 0, INT64_MAX);
  for (const absl::Status& status : {max_tokens.status(), temperature.status(), top_p.status(),
                                     top_k.status(), seed.status()}) {
    if (!status.ok()) return status;
  }
  if (args.Has("chat")) {
    v1::ChatMessage* message = request->mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(std::move(prompt));
  } else {
    request->set_text(std::move(prompt));
  }
  request->mutable_stopping()->set_max_tokens(static_cast<int32_t>(*max_tokens));
  request->mutable_stopping()->set_ignore_eos(args.Has("ignore-eos"));
  if (args.Has("stop")) request->mutable_stopping()->add_stop(args.Get("stop"));
  request->mutable_sampling()->set_temperature(static_cast<float>(*temperature));
  request->mutable_sampling()->set_top_p(static_cast<float>(*top_p));
  request->mutable_sampling()->set_top_k(static_cast<int32_t>(*top_k));
  if (args.Has("seed")) request->mutable_sampling()->set_seed(static_cast<uint64_t>(*seed));
  request->mutable_output()->set_report_progress(true);
  return absl::OkStatus();
}

// A line on standard error that is overwritten while a long prompt is computed. Only on a terminal.
class ProgressLine {
 public:
  void Show(const v1::PrefillProgress& progress) {
    if (!is_terminal_) return;
    std::fprintf(stderr, "\rprefill %d of %d tokens", progress.computed_tokens(),
                 progress.prompt_tokens());
    shown_ = true;
  }
  void Clear() {
    if (shown_) std::fputs("\r\033[K", stderr);
    shown_ = false;
  }

 private:
  const bool is_terminal_ = isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
};

void PrintStats(const v1::Finished& finished) {
  const v1::Usage& usage = finished.usage();
  const v1::Timings& timings = finished.timings();
  const v1::Handoff& handoff = finished.handoff();
  const int decoded = usage.generated_tokens() - 1;
  std::fprintf(stderr, "prompt tokens           %d (%d from the prefix cache)\n",
               usage.prompt_tokens(), usage.cached_tokens());
  std::fprintf(stderr, "generated tokens        %d\n", usage.generated_tokens());
  std::fprintf(stderr, "time to first token     %.1f ms\n", timings.time_to_first_token_ms());
  if (timings.prefill_ms() > 0) {
    std::fprintf(stderr, "prefill                 %.0f tokens/s\n",
                 1e3 * (usage.prompt_tokens() - usage.cached_tokens()) / timings.prefill_ms());
  }
  if (decoded > 0 && timings.decode_ms() > 0) {
    std::fprintf(stderr, "decode                  %.1f tokens/s\n",
                 1e3 * decoded / timings.decode_ms());
  }
  if (handoff.shipped_bytes() > 0) {
    std::fprintf(stderr, "shipped to decode       %.2f MB in %.1f ms, %.1f ms after token 1\n",
                 1e-6 * static_cast<double>(handoff.shipped_bytes()), timings.transfer_ms(),
                 timings.transfer_exposed_ms());
    std::fprintf(stderr, "full attention ships    %.2f MB (%.2fx)\n",
                 1e-6 * static_cast<double>(handoff.full_attention_bytes()),
                 static_cast<double>(handoff.full_attention_bytes()) /
                     static_cast<double>(handoff.shipped_bytes()));
  }
}

}  // namespace

int RunGenerate(const std::vector<std::string>& words) {
  const ArgSpec spec = {.options = {"server", "file", "max-tokens", "temperature", "top-p", "top-k",
                                    "seed", "stop", "timeout"},
                        .flags = {"chat", "ignore-eos", "stats", "help"},
                        .max_positionals = 1};
  const absl::StatusOr<Args> args = Args::Parse(words, spec);
  if (!args.ok() || args->Has("help")) {
    if (!args.ok()) Fail("generate", args.status(), kExitUsage);
    std::fputs(kUsage, stderr);
    return args.ok() ? 0 : kExitUsage;
  }
  absl::StatusOr<std::string> prompt = ReadPrompt(*args);
  if (!prompt.ok()) return Fail("generate", prompt.status(), kExitUsage);
  v1::GenerateRequest request;
  const absl::Status filled = FillRequest(*args, *std::move(prompt), &request);
  if (!filled.ok()) return Fail("generate", filled, kExitUsage);
  const absl::StatusOr<int64_t> timeout = args->GetInt("timeout", 600, 1, 86400);
  if (!timeout.ok()) return Fail("generate", timeout.status(), kExitUsage);

  const std::string server = args->Get("server", "127.0.0.1:8470");
  grpc::ChannelArguments channel_args;
  channel_args.SetMaxReceiveMessageSize(64 << 20);
  const auto channel =
      grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), channel_args);
  const auto stub = v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(*timeout));
  const auto reader = stub->Generate(&context, request);

  ProgressLine progress;
  v1::GenerateResponse response;
  v1::Finished finished;
  while (reader->Read(&response)) {
    if (response.has_progress()) {
      progress.Show(response.progress());
      continue;
    }
    progress.Clear();
    const std::string& text =
        response.has_tokens() ? response.tokens().text() : response.finished().text();
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    if (response.has_finished()) finished = response.finished();
  }
  progress.Clear();
  const grpc::Status status = reader->Finish();
  std::fputc('\n', stdout);
  if (!status.ok()) {
    const std::string message =
        status.error_code() == grpc::StatusCode::UNAVAILABLE
            ? absl::StrCat(server, ": ", status.error_message())
            : status.error_message();
    return Fail("generate", absl::UnknownError(message), kExitFailure);
  }
  if (args->Has("stats")) PrintStats(finished);
  return 0;
}

}  // namespace hyserve::cli
