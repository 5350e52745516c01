// A worker without a model: the worker services over real gRPC, with scripted answers.
//
// By default it is a correct worker of its role that generates FakeToken(prompt, index) and ends by
// length. A test replaces the handlers to make it wrong, slow or dead.
#ifndef HYSERVE_TESTS_SUPPORT_FAKE_WORKER_H_
#define HYSERVE_TESTS_SUPPORT_FAKE_WORKER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "hyserve/v1/worker.grpc.pb.h"
#include "services/common/server.h"
#include "services/common/worker_registration_client.h"

namespace hyserve::test {

using PrefillWriter = grpc::ServerWriter<v1::PrefillEvent>;
using DecodeWriter = grpc::ServerWriter<v1::DecodeEvent>;
using PrefillHandler =
    std::function<grpc::Status(grpc::ServerContext*, const v1::PrefillRequest&, PrefillWriter*)>;
using DecodeHandler =
    std::function<grpc::Status(grpc::ServerContext*, const v1::DecodeRequest&, DecodeWriter*)>;

// The token that every fake worker generates at `index` after `prompt`: a letter.
int32_t FakeToken(const google::protobuf::RepeatedField<int32_t>& prompt, int32_t index);
// The same for a vector, and the text of the first `count` tokens with the byte tokenizer.
std::string FakeText(const std::vector<int32_t>& prompt, int32_t count);

// Pieces of scripts.
void SendFirstToken(const v1::PrefillRequest& request, PrefillWriter* writer);
void SendTokens(const v1::DecodeRequest& request, int32_t first_index, int32_t count,
                DecodeWriter* writer);
void SendStarted(DecodeWriter* writer, uint64_t shipped_bytes = 1000);
void SendFinished(int32_t generated_tokens, bool by_length, DecodeWriter* writer);
// Until the router has cancelled the call (or 10 s, then the test has failed anyway).
grpc::Status UntilCancelled(grpc::ServerContext* context);
// A correct answer.
grpc::Status GoodPrefill(grpc::ServerContext* context, const v1::PrefillRequest& request,
                         PrefillWriter* writer);
grpc::Status GoodDecode(grpc::ServerContext* context, const v1::DecodeRequest& request,
                        DecodeWriter* writer);

struct FakeWorkerOptions {
  std::string name = "worker";
  v1::WorkerRole role = v1::WORKER_ROLE_PREFILL;
  std::string router_registry = {};  // host:port
  int32_t max_sequences = 64;
  int64_t blocks = 10'000;
  int32_t max_context_tokens = 4096;
  std::string layout_fingerprint = "layout";
  std::string model_name = "fake";
  double prefill_tokens_per_second = 0;
};

class FakeWorker {
 public:
  explicit FakeWorker(const FakeWorkerOptions& options);
  ~FakeWorker();  // Kill()

  void OnPrefill(PrefillHandler handler);
  void OnDecode(DecodeHandler handler);
  // The end of the process, as the router sees it: registration and calls break.
  void Kill();
  // Only the registration breaks; calls go on.
  void DropRegistration();
  void SetDraining(bool draining);
  // Reports that it can compute nothing any more.
  void SetFailure(const std::string& why);

  bool WaitRegistered() const;
  int prefill_calls() const { return prefill_calls_; }
  int decode_calls() const { return decode_calls_; }
  int cancelled_calls() const { return cancelled_calls_; }
  const std::string& name() const { return options_.name; }

 private:
  class Prefills;
  class Decodes;

  const FakeWorkerOptions options_;
  std::mutex mutex_;
  PrefillHandler on_prefill_ = GoodPrefill;
  DecodeHandler on_decode_ = GoodDecode;
  std::atomic<int> prefill_calls_{0};
  std::atomic<int> decode_calls_{0};
  std::atomic<int> cancelled_calls_{0};
  std::atomic<bool> draining_{false};
  std::string failure_;  // guarded by mutex_
  std::unique_ptr<Prefills> prefills_;
  std::unique_ptr<Decodes> decodes_;
  std::unique_ptr<common::GrpcServer> server_;
  std::unique_ptr<common::WorkerRegistrationClient> registration_;
};

}  // namespace hyserve::test

#endif  // HYSERVE_TESTS_SUPPORT_FAKE_WORKER_H_
