// A router with fake workers and a client, all in one process over real gRPC on 127.0.0.1.
#ifndef HYSERVE_TESTS_SUPPORT_ROUTER_HARNESS_H_
#define HYSERVE_TESTS_SUPPORT_ROUTER_HARNESS_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "hyserve/v1/inference.grpc.pb.h"
#include "services/common/config.h"
#include "services/router/router.h"
#include "tests/support/fake_worker.h"

namespace hyserve::test {

// Everything a client saw of one request.
struct Reply {
  absl::Status status;
  std::vector<v1::GenerateResponse> messages;
  std::vector<int32_t> token_ids;
  std::string text;            // of tokens and `finished`
  bool contiguous = true;      // every Tokens message began where the last had ended
  int finished_count = 0;
  v1::Finished finished;
  std::string pushback_ms;     // trailing metadata
};

class RouterHarness {
 public:
  // A configuration with random ports, "fake" as the model, and short times.
  static common::Config DefaultConfig();

  explicit RouterHarness(const common::Config& config = DefaultConfig());
  ~RouterHarness();

  // Adds a worker and waits until the router knows it.
  FakeWorker* Add(FakeWorkerOptions options);
  FakeWorker* AddPrefill(const std::string& name);
  FakeWorker* AddDecode(const std::string& name);

  // A request with token ids as its prompt.
  static v1::GenerateRequest TokenRequest(std::vector<int32_t> prompt, int32_t max_tokens);
  // Sends and reads to the end. `on_message` may cancel the context.
  using OnMessage = std::function<void(grpc::ClientContext*, const v1::GenerateResponse&)>;
  Reply Generate(const v1::GenerateRequest& request, OnMessage on_message = nullptr,
                 absl::Duration timeout = absl::Seconds(20));

  // Waits until nothing is held at any worker or in the queue; false after 10 s.
  bool WaitIdle();
  // Value of a series in the exposition text, by its line's beginning; -1 if there is none.
  double Metric(const std::string& line_start);
  // GET /metrics, which brings the gauges up to date. The body.
  std::string Scrape(const std::string& path = "/metrics");

  router::Router* router() { return router_.get(); }
  v1::Inference::Stub* stub() { return stub_.get(); }

 private:
  std::unique_ptr<router::Router> router_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
};

}  // namespace hyserve::test

#endif  // HYSERVE_TESTS_SUPPORT_ROUTER_HARNESS_H_
