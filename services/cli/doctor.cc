// hyserve doctor: the links between the workers of a running HyServe, as hand-offs use them.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/cli/args.h"
#include "services/cli/commands.h"
#include "services/common/config.h"

namespace hyserve::cli {
namespace {

constexpr char kUsage[] =
    "usage: hyserve doctor --config FILE [options]\n"
    "Measures latency and bandwidth from every prefill to every decode worker of a running\n"
    "HyServe and says which transports were chosen. Exit code 1 if a link is missing or below\n"
    "the floor (transfer.min_link_bytes_per_second in the configuration).\n"
    "  --message-bytes N    default 16777216\n"
    "  --messages N         default 16\n";

struct Worker {
  std::string name;
  std::unique_ptr<v1::WorkerAdmin::Stub> admin;
  v1::Registration registration;
};

absl::Status Describe(const common::WorkerSettings& settings, Worker* worker) {
  worker->name = settings.name;
  worker->admin = v1::WorkerAdmin::NewStub(
      grpc::CreateChannel(settings.listen, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  const grpc::Status status =
      worker->admin->Describe(&context, v1::DescribeRequest(), &worker->registration);
  if (status.ok()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(settings.name, " at ", settings.listen, ": ", status.error_message()));
}

// Prints one line; true if the link is there and fast enough.
bool CheckLink(const Worker& prefill, const Worker& decode, const v1::ProbeLinkRequest& parameters,
               double floor_bytes_per_second) {
  v1::ProbeLinkRequest request = parameters;
  *request.mutable_peer() = prefill.registration.transfer();
  v1::ProbeLinkResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const grpc::Status status = decode.admin->ProbeLink(&context, request, &response);
  const std::string pair = absl::StrCat(prefill.name, " -> ", decode.name);
  if (!status.ok()) {
    std::printf("%-28s FAILED   %s\n", pair.c_str(), status.error_message().c_str());
    return false;
  }
  const bool same_layout = prefill.registration.layout_fingerprint() ==
                           decode.registration.layout_fingerprint();
  const bool fast_enough = response.bytes_per_second() >= floor_bytes_per_second;
  std::printf("%-28s %8.2f GB/s  %8.1f us  %s%s%s\n", pair.c_str(),
              1e-9 * response.bytes_per_second(), response.latency_us(),
              response.transports().c_str(), fast_enough ? "" : "  BELOW THE FLOOR",
              same_layout ? "" : "  LAYOUTS DIFFER");
  return fast_enough && same_layout;
}

}  // namespace

int RunDoctor(const std::vector<std::string>& words) {
  const absl::StatusOr<Args> args = Args::Parse(
      words, {.options = {"config", "message-bytes", "messages"}, .flags = {"help"}});
  if (!args.ok() || args->Has("help") || !args->Has("config")) {
    if (!args.ok()) Fail("doctor", args.status(), kExitUsage);
    std::fputs(kUsage, stderr);
    return args.ok() && args->Has("help") ? 0 : kExitUsage;
  }
  const auto message_bytes = args->GetInt("message-bytes", 16 << 20, 1, int64_t{1} << 30);
  const auto messages = args->GetInt("messages", 16, 1, 10000);
  for (const absl::Status& status : {message_bytes.status(), messages.status()}) {
    if (!status.ok()) return Fail("doctor", status, kExitUsage);
  }
  const absl::StatusOr<common::Config> config = common::LoadConfig(args->Get("config"));
  if (!config.ok()) return Fail("doctor", config.status(), kExitConfig);
  v1::ProbeLinkRequest parameters;
  parameters.set_message_bytes(static_cast<uint64_t>(*message_bytes));
  parameters.set_messages(static_cast<uint32_t>(*messages));

  std::vector<Worker> prefill, decode;
  for (const common::WorkerSettings& settings : config->workers) {
    if (settings.role == "monolithic") continue;
    std::vector<Worker>& workers = settings.role == "prefill" ? prefill : decode;
    const absl::Status status = Describe(settings, &workers.emplace_back());
    if (!status.ok()) return Fail("doctor", status, kExitFailure);
    std::printf("%-16s %s  digest %.16s\n", settings.name.c_str(), settings.listen.c_str(),
                workers.back().registration.model_digest().c_str());
  }
  bool all_good = true;
  for (const Worker& source : prefill) {
    for (const Worker& target : decode) {
      all_good &= CheckLink(source, target, parameters, config->transfer.min_link_bytes_per_second);
    }
  }
  return all_good ? 0 : kExitFailure;
}

}  // namespace hyserve::cli
