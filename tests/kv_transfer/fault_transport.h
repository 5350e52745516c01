// A transport that misbehaves on the sender's side: drops, doubles, delays and damages messages,
// cuts connections. Wraps another transport; the probabilities may be changed at any time.
#ifndef HYSERVE_TESTS_KV_TRANSFER_FAULT_TRANSPORT_H_
#define HYSERVE_TESTS_KV_TRANSFER_FAULT_TRANSPORT_H_

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

struct Faults {
  double drop_control = 0, drop_data = 0;
  double double_control = 0, double_data = 0;
  double delay = 0;     // of control messages, by up to 5 s
  double damage = 0;    // of data: one bit
  double cut = 0;       // per message sent
};

class FaultTransport final : public Transport {
 public:
  FaultTransport(Transport* inner, uint64_t seed) : inner_(*inner), random_(seed) {}
  Faults faults;

  std::string_view name() const override { return inner_.name(); }
  std::string local_address() const override { return inner_.local_address(); }
  uint64_t incarnation() const override { return inner_.incarnation(); }
  std::string Description() const override { return inner_.Description(); }
  size_t preferred_message_bytes() const override { return inner_.preferred_message_bytes(); }
  DeviceMemory* device() const override { return inner_.device(); }
  const PathCounters& paths() const override { return inner_.paths(); }
  absl::Status RegisterMemory(void* data, size_t bytes, MemoryKind kind) override {
    return inner_.RegisterMemory(data, bytes, kind);
  }
  void SetHandler(Channel channel, TransportHandler* handler) override {
    Shim& shim = shims_[static_cast<size_t>(channel)];
    if (handler == nullptr) {
      inner_.SetHandler(channel, nullptr);  // the shim is not called any more
      shim.handler = nullptr;
      return;
    }
    shim.owner = this;
    shim.handler = handler;
    inner_.SetHandler(channel, &shim);
  }
  void Post(std::function<void()> job) override { inner_.Post(std::move(job)); }
  ClockTime Now() const override { return inner_.Now(); }
  uint64_t RunAt(ClockTime when, std::function<void()> job) override {
    return inner_.RunAt(when, std::move(job));
  }
  void CancelTimer(uint64_t timer) override { inner_.CancelTimer(timer); }
  absl::StatusOr<EndpointId> Connect(std::string_view address) override {
    return inner_.Connect(address);
  }
  void SendControl(EndpointId endpoint, Channel to, std::string_view message) override {
    if (Happens(faults.cut)) inner_.Close(endpoint);
    if (Happens(faults.drop_control)) return;
    if (Happens(faults.double_control)) inner_.SendControl(endpoint, to, message);
    if (Happens(faults.delay)) {
      const auto wait = absl::Milliseconds(static_cast<int64_t>(random_() % 5000));
      inner_.RunAt(inner_.Now() + wait, [this, endpoint, to, copy = std::string(message)] {
        inner_.SendControl(endpoint, to, copy);
      });
      return;
    }
    inner_.SendControl(endpoint, to, message);
  }
  void SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                std::string_view header, const void* data, size_t length) override {
    if (Happens(faults.cut)) inner_.Close(endpoint);
    if (Happens(faults.double_data)) {
      // The copy is the network's: it may arrive long after the sender's memory was reused.
      Copy(endpoint, from, to, kOwnOperation | next_own_++, header, data, length);
    }
    if (Happens(faults.drop_data)) {
      inner_.Post([this, from, id] {
        TransportHandler* handler = shims_[static_cast<size_t>(from)].handler;
        if (handler != nullptr) handler->OnSent(id, absl::OkStatus());
      });
      return;
    }
    if (length > 0 && Happens(faults.damage)) {
      std::string& copy = Copy(endpoint, from, to, id, header, data, length);
      copy[random_() % length] ^= static_cast<char>(1 << (random_() % 8));
      ++damaged;
      return;
    }
    inner_.SendData(endpoint, from, to, id, header, data, length);
  }
  void Close(EndpointId endpoint) override { inner_.Close(endpoint); }
  std::string EndpointDescription(EndpointId endpoint) const override {
    return inner_.EndpointDescription(endpoint);
  }
  DataPath EndpointPath(EndpointId endpoint) const override {
    return inner_.EndpointPath(endpoint);
  }

  int64_t damaged = 0;

 private:
  static constexpr OperationId kOwnOperation = OperationId{1} << 63;

  struct Shim final : TransportHandler {
    void OnControl(EndpointId from, std::string_view message) override {
      handler->OnControl(from, message);
    }
    std::optional<ReceiveTarget> OnData(EndpointId from, std::string_view header,
                                        size_t length) override {
      return handler->OnData(from, header, length);
    }
    void OnReceived(OperationId id, const absl::Status& status) override {
      handler->OnReceived(id, status);
    }
    void OnSent(OperationId id, const absl::Status& status) override {
      owner->copies_.erase(id);
      if ((id & kOwnOperation) == 0) handler->OnSent(id, status);
    }
    void OnEndpointClosed(EndpointId endpoint, const absl::Status& status) override {
      handler->OnEndpointClosed(endpoint, status);
    }
    FaultTransport* owner = nullptr;
    TransportHandler* handler = nullptr;
  };

  bool Happens(double probability) {
    return probability > 0 && std::uniform_real_distribution<>(0, 1)(random_) < probability;
  }
  std::string& Copy(EndpointId endpoint, Channel from, Channel to, OperationId id,
                    std::string_view header, const void* data, size_t length) {
    std::string& copy = copies_[id];
    copy.assign(static_cast<const char*>(data), length);
    inner_.SendData(endpoint, from, to, id, header, copy.data(), length);
    return copy;
  }

  Transport& inner_;
  std::mt19937_64 random_;
  std::array<Shim, kNumChannels> shims_;
  std::map<OperationId, std::string> copies_;  // node-based: addresses stay
  OperationId next_own_ = 1;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_FAULT_TRANSPORT_H_
