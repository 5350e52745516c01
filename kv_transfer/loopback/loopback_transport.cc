#include "kv_transfer/loopback/loopback_transport.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/random/random.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "kv_transfer/progress_loop.h"

namespace hyserve::kv_transfer {
namespace {

constexpr std::string_view kScheme = "loopback:";
class Node;

// One connection: the two ends and whether it is open. The lock is held while bytes are copied, so
// that after Shut() nothing is written any more.
struct Connection {
  EndpointId ends[2] = {0, 0};
  uint64_t nodes[2] = {0, 0};
  absl::Mutex mutex;
  bool open ABSL_GUARDED_BY(mutex) = true;

  bool Shut() {
    absl::MutexLock lock(&mutex);
    return std::exchange(open, false);
  }
};

}  // namespace

struct LoopbackNetwork::Shared {
  explicit Shared(Options o) : options(std::move(o)) {}
  const Options options;
  std::atomic<uint64_t> next_id{1};
  absl::Mutex mutex;
  absl::flat_hash_map<uint64_t, Node*> nodes ABSL_GUARDED_BY(mutex);
  struct Range {
    const char* data;
    size_t bytes;
  };
  std::vector<Range> device_memory ABSL_GUARDED_BY(mutex);

  bool IsDeviceMemory(const void* data) {
    absl::MutexLock lock(&mutex);
    return std::any_of(device_memory.begin(), device_memory.end(), [data](const Range& range) {
      return data >= range.data && data < range.data + range.bytes;
    });
  }
  absl::Status Copy(void* to, const void* from, size_t bytes) {
    const bool to_device = IsDeviceMemory(to);
    const bool from_device = IsDeviceMemory(from);
    if (!to_device && !from_device) {
      std::memcpy(to, from, bytes);
      return absl::OkStatus();
    }
    using Direction = DeviceMemory::Direction;
    return CopyAndWait(*options.device,
                       !to_device     ? Direction::kToHost
                       : !from_device ? Direction::kToDevice
                                      : Direction::kOnDevice,
                       to, from, bytes);
  }

  // Both lists are as long together.
  absl::Status Copy(std::vector<MemoryPart> to, std::vector<MemoryPart> from) {
    absl::Status status;
    for (size_t t = 0, f = 0; status.ok() && t < to.size() && f < from.size();) {
      const size_t bytes = std::min(to[t].bytes, from[f].bytes);
      status = Copy(to[t].data, from[f].data, bytes);
      for (MemoryPart* part : {&to[t], &from[f]}) {
        part->data += bytes;
        part->bytes -= bytes;
      }
      if (to[t].bytes == 0) ++t;
      if (from[f].bytes == 0) ++f;
    }
    return status;
  }

  // Queues a network event at a node; dropped when the node is gone.
  void Deliver(uint64_t node, std::function<void(Node&)> event);
};

namespace {

class Node final : public LoopbackTransport {
 public:
  explicit Node(std::shared_ptr<LoopbackNetwork::Shared> shared)
      : shared_(std::move(shared)),
        id_(shared_->next_id.fetch_add(1)),
        incarnation_(absl::Uniform<uint64_t>(absl::BitGen(), 1, UINT64_MAX)),
        loop_([this] { Wake(); }, shared_->options.clock) {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->nodes[id_] = this;
    }
    if (!shared_->options.manual) thread_ = std::thread([this] { Main(); });
  }

  ~Node() override {
    {
      absl::MutexLock lock(&shared_->mutex);
      shared_->nodes.erase(id_);
    }
    if (thread_.joinable()) {
      {
        absl::MutexLock lock(&mutex_);
        stopping_ = true;
      }
      thread_.join();
    }
    for (auto& [endpoint, end] : ends_) {
      if (end.connection->Shut()) NotifyPeer(*end.connection, endpoint);
    }
  }

  std::string_view name() const override { return "loopback"; }
  std::string local_address() const override { return std::string(kScheme) + std::to_string(id_); }
  uint64_t incarnation() const override { return incarnation_; }
  std::string Description() const override {
    return absl::StrCat("transport: loopback (copies inside one process)\naddress: ",
                        local_address(), "\nmessage_bytes: ", shared_->options.message_bytes, "\n");
  }
  DeviceMemory* device() const override { return shared_->options.device.get(); }
  const PathCounters& paths() const override { return paths_; }
  size_t preferred_message_bytes() const override { return shared_->options.message_bytes; }
  absl::Status RegisterMemory(void* data, size_t bytes, MemoryKind kind) override {
    if (kind == MemoryKind::kHost) return absl::OkStatus();
    if (device() == nullptr) {
      return absl::InvalidArgumentError("this loopback network was made for host memory only");
    }
    absl::Status status = device()->CheckRange(data, bytes);
    if (!status.ok()) return status;
    absl::MutexLock lock(&shared_->mutex);
    shared_->device_memory.push_back({static_cast<const char*>(data), bytes});
    return status;
  }

  void SetHandler(Channel channel, TransportHandler* handler) override {
    if (shared_->options.manual) {
      absl::MutexLock turn(&turn_);  // so that the old handler is not being called any more
      handlers_[static_cast<int>(channel)] = handler;
      return;
    }
    absl::Notification done;
    Post([&] {
      handlers_[static_cast<int>(channel)] = handler;
      done.Notify();
    });
    done.WaitForNotification();
  }

  void Post(std::function<void()> job) override { loop_.Post(std::move(job)); }
  ClockTime Now() const override { return loop_.Now(); }
  uint64_t RunAt(ClockTime when, std::function<void()> job) override {
    return loop_.RunAt(when, std::move(job));
  }
  void CancelTimer(uint64_t timer) override { loop_.CancelTimer(timer); }

  absl::StatusOr<EndpointId> Connect(std::string_view address) override {
    uint64_t peer = 0;
    if (address.substr(0, kScheme.size()) != kScheme ||
        !absl::SimpleAtoi(std::string(address.substr(kScheme.size())), &peer)) {
      return absl::InvalidArgumentError("not an address of the loopback transport");
    }
    auto connection = std::make_shared<Connection>();
    connection->nodes[0] = id_;
    connection->nodes[1] = peer;
    connection->ends[0] = shared_->next_id.fetch_add(1);
    connection->ends[1] = shared_->next_id.fetch_add(1);
    const EndpointId endpoint = connection->ends[0];
    ends_[endpoint].connection = connection;
    bool reachable = false;
    {
      absl::MutexLock lock(&shared_->mutex);
      reachable = shared_->nodes.contains(peer);
    }
    if (!reachable) {
      shared_->Deliver(id_, [endpoint](Node& self) {
        self.EndEndpoint(endpoint, absl::UnavailableError("no such loopback peer"));
      });
    }
    return endpoint;
  }

  void SendControl(EndpointId endpoint, Channel to, std::string_view message) override {
    const auto it = ends_.find(endpoint);
    if (it == ends_.end()) return;
    shared_->Deliver(PeerNode(*it->second.connection, endpoint),
                     [connection = it->second.connection, endpoint, to,
                      message = std::string(message)](Node& peer) {
                       const EndpointId from = peer.Accept(connection, endpoint);
                       TransportHandler* handler = peer.handlers_[static_cast<int>(to)];
                       if (from != 0 && handler != nullptr) handler->OnControl(from, message);
                     });
  }

  void SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                std::string_view header, const void* data, size_t length) override {
    SendParts(endpoint, from, to, id, header,
              {{static_cast<char*>(const_cast<void*>(data)), length}});  // only read
  }
  bool CanGather() const override { return device() != nullptr; }
  void SendParts(EndpointId endpoint, Channel from, Channel to, OperationId id,
                 std::string_view header, const std::vector<MemoryPart>& parts) override {
    const auto it = ends_.find(endpoint);
    if (it == ends_.end()) {
      shared_->Deliver(id_, [from, id](Node& self) {
        self.Sent(from, id, absl::UnavailableError("the endpoint has ended"));
      });
      return;
    }
    it->second.sends.insert({from, id});
    paths_.sent(EndpointPath(endpoint)).Add(static_cast<int64_t>(LengthOf(parts)));
    shared_->Deliver(PeerNode(*it->second.connection, endpoint),
                     [connection = it->second.connection, endpoint, from, to, id,
                      header = std::string(header), parts](Node& peer) {
                       peer.Announced(connection, endpoint, from, to, id, header, parts);
                     });
  }

  void Close(EndpointId endpoint) override {
    const auto it = ends_.find(endpoint);
    if (it == ends_.end() || !it->second.connection->Shut()) return;
    NotifyPeer(*it->second.connection, endpoint);
    shared_->Deliver(id_, [endpoint](Node& self) {
      self.EndEndpoint(endpoint, absl::CancelledError("closed"));
    });
  }

  std::string EndpointDescription(EndpointId endpoint) const override {
    return ends_.contains(endpoint) ? "loopback" : "";
  }

  DataPath EndpointPath(EndpointId endpoint) const override {
    return device() == nullptr ? DataPath::kHost : DataPath::kDirect;
  }

  size_t num_events() const override {
    absl::MutexLock lock(&mutex_);
    return events_.size();
  }

  bool RunOne(uint64_t choice) override {
    absl::MutexLock turn(&turn_);
    const bool any = loop_.RunReady();
    std::function<void(Node&)> event;
    {
      absl::MutexLock lock(&mutex_);
      if (events_.empty()) return any;
      const auto it = events_.begin() + static_cast<std::ptrdiff_t>(choice % events_.size());
      event = std::move(*it);
      events_.erase(it);
    }
    event(*this);
    return true;
  }

  void Queue(std::function<void(Node&)> event) {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }

 private:
  struct End {
    std::shared_ptr<Connection> connection;
    absl::flat_hash_set<std::pair<Channel, OperationId>> sends;
    absl::flat_hash_set<std::pair<Channel, OperationId>> receives;
  };

  static size_t LengthOf(const std::vector<MemoryPart>& parts) {
    size_t bytes = 0;
    for (const MemoryPart& part : parts) bytes += part.bytes;
    return bytes;
  }
  static int Side(const Connection& connection, EndpointId endpoint) {
    return connection.ends[0] == endpoint ? 0 : 1;
  }
  static uint64_t PeerNode(const Connection& connection, EndpointId endpoint) {
    return connection.nodes[1 - Side(connection, endpoint)];
  }

  // The other side ended: everything on its end is over.
  void NotifyPeer(const Connection& connection, EndpointId endpoint) {
    const EndpointId other = connection.ends[1 - Side(connection, endpoint)];
    shared_->Deliver(PeerNode(connection, endpoint), [other](Node& peer) {
      peer.EndEndpoint(other, absl::UnavailableError("the peer closed the connection"));
    });
  }

  // This side's end of the connection whose other end is `remote`; 0 when it is over.
  EndpointId Accept(const std::shared_ptr<Connection>& connection, EndpointId remote) {
    {
      absl::MutexLock lock(&connection->mutex);
      if (!connection->open) return 0;
    }
    const EndpointId local = connection->ends[1 - Side(*connection, remote)];
    ends_[local].connection = connection;
    return local;
  }

  // The rendezvous: this side says where the bytes shall land; the copy is an event of its own.
  void Announced(const std::shared_ptr<Connection>& connection, EndpointId remote, Channel from,
                 Channel to, OperationId send, const std::string& header,
                 const std::vector<MemoryPart>& parts) {
    const size_t length = LengthOf(parts);
    const EndpointId local = Accept(connection, remote);
    if (local == 0) return;
    TransportHandler* handler = handlers_[static_cast<int>(to)];
    std::optional<ReceiveTarget> target;
    if (handler != nullptr) target = handler->OnData(local, header, length);
    if (!target) {
      CompleteSend(*connection, remote, from, send);
      return;
    }
    const auto end = ends_.find(local);
    if (end == ends_.end()) return;  // cannot be: an endpoint ends in an event of its own
    end->second.receives.insert({to, target->id});
    std::vector<MemoryPart> landing = target->parts;
    if (landing.empty()) landing = {{static_cast<char*>(target->data), length}};
    shared_->Deliver(id_, [connection, local, remote, from, to, send, parts, length,
                           landing = std::move(landing), id = target->id](Node& self) {
      absl::Status copied;
      {
        absl::MutexLock lock(&connection->mutex);
        if (!connection->open) return;  // the ending of the endpoint completes the receive
        copied = self.shared_->Copy(landing, parts);
      }
      self.paths_.received(self.EndpointPath(local)).Add(static_cast<int64_t>(length));
      self.CompleteSend(*connection, remote, from, send);
      const auto it = self.ends_.find(local);
      if (it != self.ends_.end() && it->second.receives.erase({to, id}) > 0) {
        self.Received(to, id, copied);
      }
    });
  }

  void CompleteSend(const Connection& connection, EndpointId sender_end, Channel channel,
                    OperationId send) {
    const uint64_t node = connection.nodes[Side(connection, sender_end)];
    shared_->Deliver(node, [sender_end, channel, send](Node& sender) {
      const auto it = sender.ends_.find(sender_end);
      if (it != sender.ends_.end() && it->second.sends.erase({channel, send}) > 0) {
        sender.Sent(channel, send, absl::OkStatus());
      }
    });
  }

  void EndEndpoint(EndpointId endpoint, const absl::Status& status) {
    const auto it = ends_.find(endpoint);
    if (it == ends_.end()) return;
    it->second.connection->Shut();
    const End end = std::move(it->second);
    ends_.erase(it);
    for (const auto& [channel, id] : end.receives) Received(channel, id, status);
    for (const auto& [channel, id] : end.sends) Sent(channel, id, status);
    for (TransportHandler* handler : handlers_) {
      if (handler != nullptr) handler->OnEndpointClosed(endpoint, status);
    }
  }

  void Received(Channel channel, OperationId id, const absl::Status& status) {
    TransportHandler* handler = handlers_[static_cast<int>(channel)];
    if (handler != nullptr) handler->OnReceived(id, status);
  }
  void Sent(Channel channel, OperationId id, const absl::Status& status) {
    TransportHandler* handler = handlers_[static_cast<int>(channel)];
    if (handler != nullptr) handler->OnSent(id, status);
  }

  void Wake() {
    absl::MutexLock lock(&mutex_);
    woken_ = true;
  }

  bool Awake() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || woken_ || !events_.empty();
  }

  void Main() {
    while (true) {
      const absl::Duration wait = std::max(absl::ZeroDuration(), loop_.NextTimer() - loop_.Now());
      {
        absl::MutexLock lock(&mutex_);
        mutex_.AwaitWithTimeout(absl::Condition(this, &Node::Awake), wait);
        if (stopping_) return;
        woken_ = false;
      }
      loop_.RunReady();
      std::vector<std::function<void(Node&)>> events;
      {
        absl::MutexLock lock(&mutex_);
        events.swap(events_);
      }
      for (std::function<void(Node&)>& event : events) event(*this);
    }
  }

  const std::shared_ptr<LoopbackNetwork::Shared> shared_;
  const uint64_t id_;
  const uint64_t incarnation_;
  mutable absl::Mutex mutex_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void(Node&)>> events_ ABSL_GUARDED_BY(mutex_);
  absl::Mutex turn_;  // manual mode: held by RunOne(), whose caller is the progress thread
  // Progress thread.
  ProgressLoop loop_;
  TransportHandler* handlers_[kNumChannels] = {};
  absl::flat_hash_map<EndpointId, End> ends_;
  PathCounters paths_;
  std::thread thread_;
};

}  // namespace

void LoopbackNetwork::Shared::Deliver(uint64_t node, std::function<void(Node&)> event) {
  absl::MutexLock lock(&mutex);
  const auto it = nodes.find(node);
  if (it != nodes.end()) it->second->Queue(std::move(event));
}

LoopbackNetwork::LoopbackNetwork(Options options) {
  if (!options.clock) options.clock = SteadyNow;
  shared_ = std::make_shared<Shared>(std::move(options));
}
LoopbackNetwork::~LoopbackNetwork() = default;

std::unique_ptr<LoopbackTransport> LoopbackNetwork::NewTransport() {
  return std::make_unique<Node>(shared_);
}

}  // namespace hyserve::kv_transfer
