#include "kv_transfer/link_probe.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/notification.h"

namespace hyserve::kv_transfer {
namespace {

constexpr size_t kMaxMessageBytes = size_t{64} << 20;
constexpr int32_t kMaxMessages = 256;
constexpr int32_t kMaxInFlight = 16;
constexpr uint32_t kMagic = 0x48764B50;

enum class Kind : uint32_t { kPing = 1, kPong = 2, kSend = 3, kRefused = 4, kData = 5 };

// All messages of a probe have this one form; fields that a kind does not use are zero.
struct ProbeMessage {
  Kind kind = Kind::kPing;
  uint64_t probe = 0;  // drawn by the measuring side
  uint64_t incarnation = 0;
  uint64_t message_bytes = 0;
  uint32_t messages = 0;  // kData: index
  uint32_t in_flight = 0;
};
constexpr size_t kMessageBytes = 40;

void Put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}
uint64_t Take(std::string_view& in, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(in[static_cast<size_t>(i)]))
             << (8 * i);
  }
  in.remove_prefix(static_cast<size_t>(bytes));
  return value;
}

std::string Encode(const ProbeMessage& message) {
  std::string out;
  Put(out, kMagic, 4);
  Put(out, static_cast<uint64_t>(message.kind), 4);
  Put(out, message.probe, 8);
  Put(out, message.incarnation, 8);
  Put(out, message.message_bytes, 8);
  Put(out, message.messages, 4);
  Put(out, message.in_flight, 4);
  return out;
}

std::optional<ProbeMessage> Decode(std::string_view in) {
  if (in.size() != kMessageBytes || Take(in, 4) != kMagic) return std::nullopt;
  ProbeMessage message;
  const uint64_t kind = Take(in, 4);
  if (kind < 1 || kind > 5) return std::nullopt;
  message.kind = static_cast<Kind>(kind);
  message.probe = Take(in, 8);
  message.incarnation = Take(in, 8);
  message.message_bytes = Take(in, 8);
  message.messages = static_cast<uint32_t>(Take(in, 4));
  message.in_flight = static_cast<uint32_t>(Take(in, 4));
  if (message.message_bytes > kMaxMessageBytes || message.messages > kMaxMessages ||
      message.in_flight > static_cast<uint32_t>(kMaxInFlight)) {
    return std::nullopt;
  }
  return message;
}

class LinkProbeImpl final : public LinkProbe, private TransportHandler {
 public:
  LinkProbeImpl(Transport* transport, int32_t max_answers)
      : transport_(*transport), max_answers_(static_cast<size_t>(std::max(0, max_answers))) {
    transport_.SetHandler(Channel::kProbe, this);
  }

  ~LinkProbeImpl() override {
    absl::Notification quiet;
    transport_.Post([&] {
      quiet_ = &quiet;
      std::vector<uint64_t> running;
      for (const auto& [id, probe] : probes_) running.push_back(id);
      for (const uint64_t id : running) End(id, absl::CancelledError("the link probe stops"));
      for (const auto& [endpoint, answer] : answers_) transport_.Close(endpoint);
      NotifyIfQuiet();
    });
    quiet.WaitForNotification();
    transport_.SetHandler(Channel::kProbe, nullptr);
  }

  void Measure(const PeerAddress& peer, const LinkProbeOptions& options,
               LinkCallback callback) override {
    transport_.Post([this, peer, options, callback = std::move(callback)]() mutable {
      Start(peer, options, std::move(callback));
    });
  }

 private:
  // A measurement by this side. Its buffer lives until its endpoint has ended.
  struct Probe {
    EndpointId endpoint = 0;
    LinkProbeOptions options;
    LinkCallback callback;  // null: answered, waits for the end of the endpoint
    uint64_t peer_incarnation = 0;
    uint64_t timer = 0;
    ClockTime ping_sent;
    std::vector<double> round_trips_us;
    std::vector<std::shared_ptr<char>> buffers;
    ClockTime first_announced = absl::InfiniteDuration();
    int32_t received = 0;
  };
  // A measurement by the peer: this side sends the same bytes again and again.
  struct Answer {
    ProbeMessage request;
    std::shared_ptr<char> bytes;
    uint32_t sent = 0;
    uint32_t in_flight = 0;
  };

  void Start(const PeerAddress& peer, const LinkProbeOptions& options, LinkCallback callback) {
    if (options.message_bytes == 0 || options.message_bytes > kMaxMessageBytes ||
        options.messages <= 0 || options.messages > kMaxMessages ||
        options.messages_in_flight <= 0 || options.messages_in_flight > kMaxInFlight ||
        options.round_trips <= 0 || options.round_trips > 1000 || quiet_ != nullptr) {
      callback(absl::InvalidArgumentError("link probe: options out of range"));
      return;
    }
    std::vector<std::shared_ptr<char>> buffers;
    for (int32_t i = 0; i < options.messages_in_flight; ++i) {
      absl::StatusOr<std::shared_ptr<char>> buffer =
          transport_.AllocateScratch(options.message_bytes);
      if (!buffer.ok()) {
        callback(buffer.status());
        return;
      }
      buffers.push_back(*std::move(buffer));
    }
    const absl::StatusOr<EndpointId> endpoint = transport_.Connect(peer.transport_address);
    if (!endpoint.ok()) {
      callback(endpoint.status());
      return;
    }
    const uint64_t id = next_probe_++;
    Probe& probe = probes_[id];
    probe.endpoint = *endpoint;
    probe.options = options;
    probe.callback = std::move(callback);
    probe.peer_incarnation = peer.incarnation;
    probe.buffers = std::move(buffers);
    probe.timer = transport_.RunAt(transport_.Now() + options.timeout, [this, id] {
      End(id, absl::DeadlineExceededError("link probe: no answer in time"));
    });
    Ping(id, probe);
  }

  void Ping(uint64_t id, Probe& probe) {
    probe.ping_sent = transport_.Now();
    Say(probe.endpoint, {.kind = Kind::kPing, .probe = id, .incarnation = probe.peer_incarnation});
  }

  void Say(EndpointId to, const ProbeMessage& message) {
    transport_.SendControl(to, Channel::kProbe, Encode(message));
  }

  // Answers the caller; the rest of the probe goes when its endpoint has ended.
  void End(uint64_t id, absl::StatusOr<LinkReport> result) {
    Probe& probe = probes_.at(id);
    if (!probe.callback) return;
    transport_.CancelTimer(probe.timer);
    const LinkCallback callback = std::exchange(probe.callback, nullptr);
    transport_.Close(probe.endpoint);
    callback(std::move(result));
  }

  void NotifyIfQuiet() {
    if (quiet_ != nullptr && probes_.empty() && answers_.empty()) {
      std::exchange(quiet_, nullptr)->Notify();
    }
  }

  void OnControl(EndpointId from, std::string_view bytes) override {
    const std::optional<ProbeMessage> message = Decode(bytes);
    if (!message) return;
    switch (message->kind) {
      case Kind::kPing:
      case Kind::kSend:
        if (message->incarnation != transport_.incarnation()) {
          Say(from, {.kind = Kind::kRefused, .probe = message->probe});
        } else if (message->kind == Kind::kPing) {
          Say(from, {.kind = Kind::kPong, .probe = message->probe});
        } else {
          StartAnswer(from, *message);
        }
        return;
      case Kind::kPong:
      case Kind::kRefused: break;
      case Kind::kData: return;
    }
    const auto it = probes_.find(message->probe);
    if (it == probes_.end() || it->second.endpoint != from || !it->second.callback) return;
    Probe& probe = it->second;
    if (message->kind == Kind::kRefused) {
      End(it->first, absl::UnavailableError("link probe: the peer refused (busy, or restarted)"));
      return;
    }
    probe.round_trips_us.push_back(
        absl::ToDoubleMicroseconds(transport_.Now() - probe.ping_sent));
    if (static_cast<int32_t>(probe.round_trips_us.size()) < probe.options.round_trips) {
      Ping(it->first, probe);
      return;
    }
    Say(from, {.kind = Kind::kSend,
               .probe = it->first,
               .incarnation = probe.peer_incarnation,
               .message_bytes = probe.options.message_bytes,
               .messages = static_cast<uint32_t>(probe.options.messages),
               .in_flight = static_cast<uint32_t>(probe.options.messages_in_flight)});
  }

  void StartAnswer(EndpointId from, const ProbeMessage& request) {
    if (answers_.size() >= max_answers_ || answers_.contains(from) || quiet_ != nullptr ||
        request.message_bytes == 0 || request.messages == 0 || request.in_flight == 0) {
      Say(from, {.kind = Kind::kRefused, .probe = request.probe});
      return;
    }
    absl::StatusOr<std::shared_ptr<char>> bytes = transport_.AllocateScratch(request.message_bytes);
    if (!bytes.ok()) {
      Say(from, {.kind = Kind::kRefused, .probe = request.probe});
      return;
    }
    if (transport_.device() == nullptr) std::memset(bytes->get(), 'p', request.message_bytes);
    Answer& answer = answers_[from];
    answer.request = request;
    answer.bytes = *std::move(bytes);
    PumpAnswer(from, answer);
  }

  void PumpAnswer(EndpointId to, Answer& answer) {
    while (answer.sent < answer.request.messages && answer.in_flight < answer.request.in_flight) {
      const OperationId operation = next_operation_++;
      sends_[operation] = to;
      ++answer.in_flight;
      const std::string header = Encode(
          {.kind = Kind::kData, .probe = answer.request.probe, .messages = answer.sent++});
      transport_.SendData(to, Channel::kProbe, Channel::kProbe, operation, header,
                          answer.bytes.get(), answer.request.message_bytes);
    }
  }

  std::optional<ReceiveTarget> OnData(EndpointId from, std::string_view header,
                                      size_t length) override {
    const std::optional<ProbeMessage> message = Decode(header);
    if (!message || message->kind != Kind::kData) return std::nullopt;
    const auto it = probes_.find(message->probe);
    if (it == probes_.end()) return std::nullopt;
    Probe& probe = it->second;
    if (probe.endpoint != from || !probe.callback || length != probe.options.message_bytes) {
      return std::nullopt;
    }
    probe.first_announced = std::min(probe.first_announced, transport_.Now());
    const OperationId operation = next_operation_++;
    landings_[operation] = it->first;
    // Two messages may share a buffer for a moment: nobody reads them.
    const std::shared_ptr<char>& buffer = probe.buffers[message->messages % probe.buffers.size()];
    return ReceiveTarget{buffer.get(), operation};
  }

  void OnReceived(OperationId id, const absl::Status& status) override {
    const auto landing = landings_.find(id);
    if (landing == landings_.end()) return;
    const uint64_t probe_id = landing->second;
    landings_.erase(landing);
    Probe& probe = probes_.at(probe_id);
    if (!status.ok() || ++probe.received < probe.options.messages || !probe.callback) return;
    LinkReport report;
    const double seconds = absl::ToDoubleSeconds(transport_.Now() - probe.first_announced);
    const double bytes =
        static_cast<double>(probe.options.message_bytes) * static_cast<double>(probe.received);
    report.bytes_per_second = seconds > 0 ? bytes / seconds : 0;
    auto middle = probe.round_trips_us.begin() +
                  static_cast<std::ptrdiff_t>(probe.round_trips_us.size() / 2);
    std::nth_element(probe.round_trips_us.begin(), middle, probe.round_trips_us.end());
    report.latency_us = *middle / 2;
    report.connection = transport_.EndpointDescription(probe.endpoint);
    report.path = transport_.EndpointPath(probe.endpoint);
    End(probe_id, std::move(report));
  }

  void OnSent(OperationId id, const absl::Status& status) override {
    const auto send = sends_.find(id);
    if (send == sends_.end()) return;
    const EndpointId endpoint = send->second;
    sends_.erase(send);
    const auto answer = answers_.find(endpoint);
    if (answer == answers_.end()) return;
    --answer->second.in_flight;
    if (status.ok()) PumpAnswer(endpoint, answer->second);
  }

  void OnEndpointClosed(EndpointId endpoint, const absl::Status& status) override {
    answers_.erase(endpoint);
    for (auto it = probes_.begin(); it != probes_.end(); ++it) {
      if (it->second.endpoint != endpoint) continue;
      const uint64_t id = it->first;
      End(id, absl::UnavailableError("link probe: connection lost"));
      probes_.erase(id);
      break;
    }
    NotifyIfQuiet();
  }

  Transport& transport_;
  const size_t max_answers_;
  // Progress thread.
  absl::flat_hash_map<uint64_t, Probe> probes_;
  absl::flat_hash_map<EndpointId, Answer> answers_;
  absl::flat_hash_map<OperationId, uint64_t> landings_;  // probe
  absl::flat_hash_map<OperationId, EndpointId> sends_;
  uint64_t next_probe_ = 1;
  OperationId next_operation_ = 1;
  absl::Notification* quiet_ = nullptr;  // set: stopping
};

}  // namespace

std::unique_ptr<LinkProbe> LinkProbe::Create(Transport* transport, int32_t max_answers) {
  return std::make_unique<LinkProbeImpl>(transport, max_answers);
}

absl::StatusOr<LinkReport> LinkProbe::MeasureAndWait(const PeerAddress& peer,
                                                     const LinkProbeOptions& options) {
  absl::StatusOr<LinkReport> result = absl::UnknownError("no result");
  absl::Notification done;
  Measure(peer, options, [&](absl::StatusOr<LinkReport> report) {
    result = std::move(report);
    done.Notify();
  });
  done.WaitForNotification();
  return result;
}

}  // namespace hyserve::kv_transfer
