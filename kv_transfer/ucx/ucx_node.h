// The UCX transport's state: one worker, one listener, its endpoints and the operations on them,
// all owned by one progress thread. Internal to kv_transfer/ucx.
//
// UCX's callbacks run inside ucp_worker_progress() and only record what happened; handlers are
// called afterwards, from the loop. The one exception is the announcement of a data message, whose
// receive must be posted from inside UCX's callback.
//
// Device memory (ucx_path.cc, ucx_staging.cc): before the first device message of an endpoint its
// sender measures the direct path; sends wait for the outcome. Direct messages have ids of their
// own, so the receiver knows what comes. Staged messages are host messages between two staging
// buffers, and the receiver may wait for room in its own one before it takes them.
#ifndef HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_
#define HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kv_transfer/device_jobs.h"
#include "kv_transfer/progress_loop.h"
#include "kv_transfer/ucx/device_fence.h"
#include "kv_transfer/ucx/staging_buffer.h"
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
  DeviceMemory* device() const override { return options_.device.get(); }
  const PathCounters& paths() const override { return paths_; }
  absl::Status RegisterMemory(void* data, size_t bytes, MemoryKind kind) override;
  absl::StatusOr<std::shared_ptr<char>> AllocateScratch(size_t bytes) override;
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
  bool CanGather() const override { return can_gather_; }
  void SendParts(EndpointId endpoint, Channel from, Channel to, OperationId id,
                 std::string_view header, const std::vector<MemoryPart>& parts) override;
  void Close(EndpointId endpoint) override;
  std::string EndpointDescription(EndpointId endpoint) const override;
  DataPath EndpointPath(EndpointId endpoint) const override;

 private:
  struct Operation;
  struct Endpoint {
    UcxNode* node = nullptr;
    EndpointId id = 0;
    ucp_ep_h handle = nullptr;  // null when it could not even be created
    int64_t operations = 0;     // posted and not completed, control messages too
    bool accepted = false;
    bool closing = false;
    bool close_done = false;
    absl::Status reason;        // why it ends
    // The path of device memory that this side sends.
    DataPath path = DataPath::kUnknown;
    bool greeted = false;       // the peer has said what it can receive
    bool peer_direct = false;   // it can receive into device memory
    int check_round = 0;        // of the check that runs; 0: none has begun
    double best_bytes_per_second = 0;
    std::string path_reason;    // why it is not direct
    std::deque<Operation*> held;            // sends that wait for the path
    DataPath received = DataPath::kUnknown;  // of the last data message that came
  };
  enum class Kind : uint8_t { kControl, kSend, kReceive, kCheckSend, kCheckReceive };
  // One UCX request, or a staged message on its way to or from one. Lives until its completion was
  // delivered.
  struct Operation {
    Endpoint* endpoint = nullptr;
    Kind kind = Kind::kControl;
    Channel channel = Channel::kExporter;  // of the handler that is told
    OperationId id = 0;
    Channel to = Channel::kExporter;       // kSend
    std::string bytes;  // of the message or header, which UCX may read until completion
    char* data = nullptr;                  // of this side's memory
    std::vector<MemoryPart> parts;         // instead, of device memory: two or more
    size_t length = 0;
    DataPath path = DataPath::kHost;
    // While it is held: pinned memory for staged messages, device memory for direct ones in parts.
    char* slot = nullptr;
    void* announced = nullptr;             // receive by a slot: UCX's description while it waits
    bool landing = false;                  // receive by a slot: the copy out of it has begun
    bool fenced = false;                   // failed direct receive: the device was synchronised
    ClockTime started;                     // kCheckReceive
    absl::Status status;
  };
  struct Inbound {
    EndpointId from;
    Channel channel;
    std::string message;
  };
  struct MemoryHandle {
    char* data = nullptr;
    size_t bytes = 0;
    MemoryKind kind = MemoryKind::kHost;
    ucp_mem_h handle = nullptr;  // null: device memory that UCX does not take
  };
  enum class MessageType : uint8_t { kControl, kData, kDeviceData, kPath, kCheck };
  // What an active-message id means. kPath and kCheck belong to no channel.
  struct Slot {
    UcxNode* node = nullptr;
    MessageType type = MessageType::kControl;
    Channel channel = Channel::kExporter;
  };
  static constexpr int kTypesPerChannel = 3;
  static constexpr int kNumSlots = kTypesPerChannel * kNumChannels + 2;

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
  Operation* NewOperation(Endpoint& endpoint, Kind kind);
  void Post(Operation* operation, ucs_status_ptr_t result);  // takes what UCX returned
  void Complete(Operation* operation, absl::Status status);
  void Finish(std::unique_ptr<Operation> operation);         // tells the handler
  static bool NeedsFence(const Operation& operation);
  absl::Status MapMemory(char* data, size_t bytes, MemoryKind kind);
  absl::StatusOr<std::shared_ptr<char>> AllocatePinned(size_t bytes);
  std::optional<MemoryHandle> FindMemory(const void* data, size_t length) const;
  static unsigned MessageId(MessageType type, Channel channel = Channel::kExporter);
  static void AddMemory(const std::optional<MemoryHandle>& memory, ucp_request_param_t& param);
  void SendSmall(Endpoint& endpoint, unsigned message_id, std::string_view message);
  void SendMessage(Operation* operation, MessageType type,
                   const std::optional<MemoryHandle>& memory);
  // True: a completion will come and UCX keeps `announced` until then.
  bool PostReceive(Operation* operation, void* announced,
                   const std::optional<MemoryHandle>& memory);

  // Device memory: which path (ucx_path.cc).
  absl::Status OpenDevice();
  void NotDirect(std::string reason);  // the first one counts
  std::string WhyNotDirect() const;    // empty: this side can
  void Greet(Endpoint& endpoint);
  void OnPathMessage(Endpoint& endpoint, std::string_view message);
  void SendPathMessage(Endpoint& endpoint, uint32_t kind, uint32_t value, uint64_t nanoseconds);
  void StartCheck(Endpoint& endpoint);
  void SendCheck(Endpoint& endpoint);
  void FinishCheck(const Operation& operation);
  void OnCheckResult(Endpoint& endpoint, uint32_t round, uint64_t nanoseconds);
  void ChoosePath(Endpoint& endpoint, DataPath path, std::string reason);
  ucs_status_t CheckAnnounced(Endpoint& endpoint, std::string_view header, void* data,
                              size_t length);
  void SendDeviceData(Operation* operation);

  // Device memory: slots in between (ucx_staging.cc).
  struct Stage {
    StagingBuffer buffer;
    std::deque<Operation*> waiting;  // for room, in order
  };
  Stage& StageOf(const Operation& operation);
  // Puts it in line when there is no room; false when it cannot have a slot now or ever.
  bool TakeSlot(Operation* operation);
  std::optional<MemoryHandle> SlotMemory(const Operation& operation) const;
  void StageSend(Operation* operation);
  void StageReceive(Operation* operation);
  void PostStagedReceive(Operation* operation);
  bool ContinueStaged(Operation* operation);  // after a completion; false: it has ended
  void ReleaseSlot(Operation* operation);     // and serves those that wait for room
  void DropWaiting(Endpoint& endpoint);  // it is about to be closed

  // Called by UCX inside ucp_worker_progress().
  static void OnConnection(ucp_conn_request_h request, void* self);
  static void OnError(void* endpoint, ucp_ep_h handle, ucs_status_t status);
  static ucs_status_t OnMessage(void* slot, const void* header, size_t header_length, void* data,
                                size_t length, const ucp_am_recv_param_t* param);
  static void OnSendDone(void* request, ucs_status_t status, void* operation);
  static void OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation);
  static void OnCloseDone(void* request, ucs_status_t status, void* endpoint);
  ucs_status_t Announced(Endpoint& endpoint, const Slot& slot, std::string_view header, void* data,
                         size_t length, bool rendezvous);

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
  std::string not_direct_ ABSL_GUARDED_BY(memory_mutex_);  // why this side cannot; empty: it can
  bool ucx_knows_device_ = false;
  bool can_gather_ = false;
  PathCounters paths_;
  UcxContext context_;
  // Device memory for checks, mapped for UCX; null unless this side can go directly.
  std::shared_ptr<char> check_source_;
  std::shared_ptr<char> check_target_;
  std::thread thread_;

  // Progress thread.
  UcxWorker worker_;
  UcxListener listener_;
  Slot slots_[kNumSlots];
  TransportHandler* handlers_[kNumChannels] = {};
  EndpointId next_endpoint_ = 1;
  absl::flat_hash_map<EndpointId, std::unique_ptr<Endpoint>> endpoints_;
  absl::flat_hash_map<ucp_ep_h, Endpoint*> by_handle_;
  int64_t operations_ = 0;  // data operations in flight
  int64_t spins_ = 0;
  ClockTime spin_until_;
  DeviceJobs jobs_;
  DeviceFence fence_;
  Stage pinned_sends_;
  Stage pinned_receives_;
  Stage device_sends_;
  Stage device_receives_;
  // Recorded by callbacks, run by RunRecorded().
  std::vector<ucp_conn_request_h> connections_;
  std::deque<Inbound> inbound_;
  std::deque<std::pair<EndpointId, std::string>> path_messages_;
  std::deque<Operation*> completed_;
  std::vector<std::pair<EndpointId, absl::Status>> ending_;  // by an error or by Close()
  std::vector<EndpointId> closing_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_UCX_NODE_H_
