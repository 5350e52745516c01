// Prefill, decode and monolithic workers with real engines in one process, over real gRPC and the
// loopback transport. The test plays the router.
#ifndef HYSERVE_TESTS_SERVICES_WORKERS_WORKER_HARNESS_H_
#define HYSERVE_TESTS_SERVICES_WORKERS_WORKER_HARNESS_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "kv_transfer/loopback/loopback_transport.h"
#include "services/common/config.h"
#include "services/decode_worker/decode_worker.h"
#include "services/prefill_worker/prefill_worker.h"

namespace hyserve::test {

// Token ids of the tiny preset without its end token 0; reproducible.
std::vector<int32_t> MakePrompt(int32_t length, uint32_t salt = 0);
v1::WorkerSampling Greedy(int32_t max_tokens);
v1::WorkerSampling Seeded(int32_t max_tokens, uint64_t seed);

// As WorkerHarness::Metric, of an exposition text.
double SeriesValue(const std::string& text, const std::string& name, const std::string& label = "");

// What came back from one Prefill call.
struct PrefillReply {
  absl::Status status;
  int32_t cached_tokens = -1;
  std::vector<int32_t> progress;
  int32_t first_token = -1;
  bool finished = false;
  bool finished_by_length = false;
  std::string handoff;  // HandoffDone's reason; empty: none came
  int prompt_logprobs = 0;
};

// What came back from one Decode call.
struct DecodeReply {
  absl::Status status;
  bool reserved = false;
  bool started = false;
  v1::DecodeEvent::Started handoff;
  int32_t first_index = -1;  // of the first token
  std::vector<int32_t> tokens;
  bool contiguous = true;
  int finished_count = 0;
  v1::DecodeEvent::Finished finished;
};

struct HarnessOptions {
  int32_t chunk_tokens = 256;
  int64_t kv_memory_bytes = int64_t{64} << 20;
  int32_t max_sequences = 16;
  absl::Duration lease = absl::Seconds(10);
  absl::Duration lease_renew = absl::Milliseconds(100);
  absl::Duration slow_consumer_kill = absl::Seconds(10);
  bool small_stream_window = false;  // of the client of decode: 64 KiB, without growth
  bool monolithic = false;           // also start a monolithic worker
};

class WorkerHarness {
 public:
  using OnPrefill = std::function<void(grpc::ClientContext*, const v1::PrefillEvent&)>;
  using OnDecode = std::function<void(grpc::ClientContext*, const v1::DecodeEvent&)>;

  explicit WorkerHarness(const HarnessOptions& options = {});
  ~WorkerHarness();

  // A request of both workers with a fresh ticket.
  struct Request {
    v1::PrefillRequest prefill;
    v1::DecodeRequest decode;
  };
  Request NewRequest(const std::vector<int32_t>& prompt, const v1::WorkerSampling& sampling);
  // The same prompt for a monolithic worker.
  static v1::DecodeRequest WithoutTicket(const Request& request);

  PrefillReply Prefill(const v1::PrefillRequest& request, const OnPrefill& on_event = nullptr,
                       absl::Duration timeout = absl::Seconds(30));
  DecodeReply Decode(const v1::DecodeRequest& request, const OnDecode& on_event = nullptr,
                     absl::Duration timeout = absl::Seconds(30));
  DecodeReply Local(const v1::DecodeRequest& request);

  struct Reply {
    PrefillReply prefill;
    DecodeReply decode;
    std::vector<int32_t> tokens;  // of both, in order
  };
  // Both calls at once, as a router makes them.
  Reply Run(const Request& request, const OnPrefill& on_prefill = nullptr,
            const OnDecode& on_decode = nullptr, absl::Duration timeout = absl::Seconds(30));

  // Waits until no worker holds anything; false, and what is held on stderr, after 20 s.
  bool WaitIdle();

  prefill_worker::PrefillWorker* prefill() { return prefill_.get(); }
  decode_worker::DecodeWorker* decode() { return decode_.get(); }
  decode_worker::DecodeWorker* monolithic() { return monolithic_.get(); }
  v1::WorkerAdmin::Stub* prefill_admin() { return prefill_admin_.get(); }
  v1::WorkerAdmin::Stub* decode_admin() { return decode_admin_.get(); }
  const kv_cache::KvLayout& layout() { return prefill_->core().engine().layout(); }

  // GET of a worker's metrics server: body, with the status code as the first line.
  static std::string Get(worker::WorkerHost& host, const std::string& path);
  // Value of the first series of that name, with that label (`state="used"`) if given; -1: none.
  static double Metric(worker::WorkerHost& host, const std::string& name,
                       const std::string& label = "");

 private:
  common::Config config_;
  kv_transfer::LoopbackNetwork network_;
  std::unique_ptr<prefill_worker::PrefillWorker> prefill_;
  std::unique_ptr<decode_worker::DecodeWorker> decode_;
  std::unique_ptr<decode_worker::DecodeWorker> monolithic_;
  std::unique_ptr<v1::PrefillWorker::Stub> prefill_stub_;
  std::unique_ptr<v1::DecodeWorker::Stub> decode_stub_;
  std::unique_ptr<v1::DecodeWorker::Stub> monolithic_stub_;
  std::unique_ptr<v1::WorkerAdmin::Stub> prefill_admin_;
  std::unique_ptr<v1::WorkerAdmin::Stub> decode_admin_;
  int next_request_ = 0;
};

}  // namespace hyserve::test

#endif  // HYSERVE_TESTS_SERVICES_WORKERS_WORKER_HARNESS_H_
