// The UCX transport's state: one worker, one listener, its endpoints and the operations on them,
// all owned by one progress thread. Internal to kv_transfer/ucx.
//
// UCX's callbacks run inside ucp_worker_progress() and only record what happened; handlers are
// called afterwards, from the loop. The one exception is the announcement of a data message, whose
// receive must be posted from inside UCX's callback.
#ifndef HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_
#define HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kv_transfer/progress_loop.h"
#include "kv_transfer/ucx/ucx_handles.h"

namespace hyserve::kv_transfer {

class UcxNode final : public Transport {
 public:
  explicit UcxNode(const UcxOptions& options);
  ~UcxNode() override;
  absl::Status Start();

  std::string_view name() const override { return "ucx"; }
  std::string local_address() const override { return address_; }
  uint64_t incarnation() const override { return incarnation_; }
  std::string Description() const override;
  size_t preferred_message_bytes() const override { return message_bytes_; }
  absl::Status RegisterMemory(void* data, size_t bytes, MemoryKind kind) override;
  void SetHandler(Channel channel, TransportHandler* handler) override;
  void Post(std::function<void()> job) override { loop_.Post(std::move(job)); }
  ClockTime Now() const override { return loop_.Now(); }
  uint64_t RunAt(ClockTime when, std::function<void()> job) override {
    return loop_.RunAt(when, std::move(job));
  }
  void CancelTimer(uint64_t timer) override { loop_.CancelTimer(timer); }
  absl::StatusOr<EndpointId> Connect(std::string_view address) override;
  void SendControl(EndpointId endpoint, Channel to, std::string_view message) override;
  void SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                std::string_view header, const void* data, size_t length) override;
  void Close(EndpointId endpoint) override;
  std::string EndpointDescription(EndpointId endpoint) const override;

 private:
  struct Endpoint {
    UcxNode* node = nullptr;
    EndpointId id = 0;
    ucp_ep_h handle = nullptr;  // null when it could not even be created
    int64_t operations = 0;     // posted and not completed, control messages too
    bool closing = false;
    bool close_done = false;
    absl::Status reason;        // why it ends
  };
  enum class Kind : uint8_t { kControl, kSend, kReceive };
  // One UCX request. Lives until its completion was delivered.
  struct Operation {
    Operation(Endpoint* e, Kind k, Channel c, OperationId o, std::string_view b = {})
        : endpoint(e), kind(k), channel(c), id(o), bytes(b) {}
    Endpoint* endpoint;
    Kind kind;
    Channel channel;
    OperationId id;
    std::string bytes;  // of the message or header, which UCX may read until completion
    size_t length = 0;  // kReceive: expected
    absl::Status status;
  };
  struct Inbound {
    EndpointId from;
    Channel channel;
    std::string message;
  };
  struct MemoryHandle {
    void* data;
    size_t bytes;
    MemoryKind kind;
    ucp_mem_h handle;
  };

  // Progress thread.
  void Main(absl::Status* started, absl::Notification* ready);
  absl::Status Listen();
  absl::Status SetReceiveHandlers();
  bool RunRecorded();  // calls handlers for what the callbacks recorded
  void Sleep();
  void Shutdown();
  Endpoint* AddEndpoint(const ucp_ep_params_t& params, const char* what);
  void Accept(ucp_conn_request_h request);
  void BeginClose(Endpoint& endpoint, absl::Status reason);
  void Post(Operation* operation, ucs_status_ptr_t result);  // takes what UCX returned
  void Complete(Operation* operation, absl::Status status);
  const MemoryHandle* FindMemory(const void* data, size_t length) const;

  // Called by UCX inside ucp_worker_progress().
  static void OnConnection(ucp_conn_request_h request, void* self);
  static void OnError(void* endpoint, ucp_ep_h handle, ucs_status_t status);
  static ucs_status_t OnMessage(void* slot, const void* header, size_t header_length, void* data,
                                size_t length, const ucp_am_recv_param_t* param);
  static void OnSendDone(void* request, ucs_status_t status, void* operation);
  static void OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation);
  static void OnCloseDone(void* request, ucs_status_t status, void* endpoint);
  ucs_status_t Announced(Endpoint& endpoint, Channel channel, std::string_view header, void* data,
                         size_t length, bool rendezvous);

  // What an active-message id means: channel and whether it carries data.
  struct Slot {
    UcxNode* node = nullptr;
    Channel channel = Channel::kExporter;
    bool data = false;
  };

  const UcxOptions options_;
  const uint64_t incarnation_;
  size_t message_bytes_ = 0;
  std::string effective_;  // settings, one a line
  std::string address_;
  std::string resources_;
  ProgressLoop loop_;
  int wake_fd_ = -1;
  int epoll_fd_ = -1;
  std::atomic<bool> stopping_{false};
  mutable absl::Mutex memory_mutex_;
  std::vector<MemoryHandle> memory_ ABSL_GUARDED_BY(memory_mutex_);
  UcxContext context_;
  std::thread thread_;

  // Progress thread.
  UcxWorker worker_;
  UcxListener listener_;
  Slot slots_[2 * kNumChannels];
  TransportHandler* handlers_[kNumChannels] = {};
  EndpointId next_endpoint_ = 1;
  absl::flat_hash_map<EndpointId, std::unique_ptr<Endpoint>> endpoints_;
  absl::flat_hash_map<ucp_ep_h, Endpoint*> by_handle_;
  int64_t operations_ = 0;  // data operations in flight
  int64_t spins_ = 0;
  ClockTime spin_until_;
  // Recorded by callbacks, run by RunRecorded().
  std::vector<ucp_conn_request_h> connections_;
  std::deque<Inbound> inbound_;
  std::deque<Operation*> completed_;
  std::vector<std::pair<EndpointId, absl::Status>> ending_;  // by an error or by Close()
  std::vector<EndpointId> closing_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_
