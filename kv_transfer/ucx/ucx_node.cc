#include "kv_transfer/ucx/ucx_node.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {
namespace {
constexpr size_t kTcpMessageBytes = size_t{1} << 20;
constexpr size_t kLargeMessageBytes = size_t{16} << 20;
// Device memory for messages that are put together from scattered pieces, for each direction.
constexpr size_t kGatherBytes = size_t{64} << 20;
constexpr absl::Duration kShutdownWait = absl::Seconds(5);
// While a device copies: long enough for a large message, and a timer that near is worth no sleep.
constexpr absl::Duration kDeviceSpin = absl::Microseconds(300);
constexpr absl::Duration kNearTimer = absl::Microseconds(50);
}  // namespace

UcxNode::UcxNode(const UcxOptions& options)
    : options_(options),
      incarnation_(absl::Uniform<uint64_t>(absl::BitGen(), 1, UINT64_MAX)),
      loop_(
          [this] {
            const uint64_t one = 1;
            // Only fails when the counter is full, and then the thread is awake anyway.
            if (write(wake_fd_, &one, sizeof(one)) < 0) return;
          },
          SteadyNow),
      jobs_(options.device.get(), nullptr),
      fence_(options.device.get(), [this] { loop_.Post([] {}); }),
      pinned_sends_{
          {options.staging_bytes, [this](size_t bytes) { return AllocatePinned(bytes); }}, {}},
      pinned_receives_{
          {options.staging_bytes, [this](size_t bytes) { return AllocatePinned(bytes); }}, {}},
      device_sends_{{kGatherBytes, [this](size_t bytes) { return AllocateScratch(bytes); }}, {}},
      device_receives_{
          {kGatherBytes, [this](size_t bytes) { return AllocateScratch(bytes); }}, {}} {
  const bool host_over_tcp = options.transports == "tcp" && options.device == nullptr;
  message_bytes_ = options.message_bytes != 0 ? options.message_bytes
                   : host_over_tcp            ? kTcpMessageBytes
                                              : kLargeMessageBytes;
}

absl::Status UcxNode::Start() {
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (wake_fd_ < 0 || epoll_fd_ < 0)
    return absl::ResourceExhaustedError("no file descriptors left");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake_fd_;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event) != 0) {
    return absl::InternalError("epoll_ctl");
  }
  // Before UCX looks for devices.
  absl::Status started = device() == nullptr ? absl::OkStatus() : device()->MakeCurrent();
  if (!started.ok()) return started;
  absl::StatusOr<UcxContext> context = OpenContext(options_, effective_);
  if (!context.ok()) return context.status();
  context_ = *std::move(context);
  started = OpenDevice();
  if (!started.ok()) return started;
  absl::Notification ready;
  thread_ = std::thread([this, &started, &ready] { Main(&started, &ready); });
  ready.WaitForNotification();
  return started;
}

UcxNode::~UcxNode() {
  if (thread_.joinable()) {
    stopping_ = true;
    loop_.Post([] {});
    thread_.join();
  }
  check_source_.reset();
  check_target_.reset();
  for (Stage* stage : {&pinned_sends_, &pinned_receives_, &device_sends_, &device_receives_}) {
    stage->buffer.Release();
  }
  {
    absl::MutexLock lock(&memory_mutex_);
    for (const MemoryHandle& memory : memory_) {
      if (memory.handle != nullptr) ucp_mem_unmap(context_.get(), memory.handle);
    }
  }
  if (wake_fd_ >= 0) close(wake_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

std::string UcxNode::Description() const {
  std::string text = absl::StrCat("transport: ucx ", UcxVersion(), "\naddress: ", address_,
                                  "\nmessage_bytes: ", message_bytes_, "\n", effective_);
  {
    absl::MutexLock lock(&memory_mutex_);
    for (const MemoryHandle& memory : memory_) {
      absl::StrAppend(&text, "registered: ", memory.bytes, " bytes of ",
                      memory.kind == MemoryKind::kHost ? "host" : "cuda", " memory\n");
    }
  }
  if (device() != nullptr) {
    const std::string reason = WhyNotDirect();
    absl::StrAppend(&text, "device: ", device()->name(), "\ndevice memory: ",
                    reason.empty() ? "direct where a peer can be reached" : "staged, " + reason,
                    "\n");
  }
  return text + resources_;
}

absl::Status UcxNode::RegisterMemory(void* data, size_t bytes, MemoryKind kind) {
  {
    absl::MutexLock lock(&memory_mutex_);
    for (const MemoryHandle& memory : memory_) {
      if (memory.data == data && memory.bytes == bytes) return absl::OkStatus();
    }
  }
  return MapMemory(static_cast<char*>(data), bytes, kind);
}

absl::Status UcxNode::MapMemory(char* data, size_t bytes, MemoryKind kind) {
  MemoryHandle memory{data, bytes, kind, nullptr};
  if (kind == MemoryKind::kCuda) {
    if (device() == nullptr) {
      return absl::InvalidArgumentError("the transport was made for host memory only");
    }
    absl::Status status = device()->CheckRange(data, bytes);
    if (status.ok()) status = device()->MakeCurrent();
    if (!status.ok()) return status;
    if (ucx_knows_device_ && !device()->Shareable(data)) {
      NotDirect("device memory that other processes cannot map");
    }
  }
  if (kind == MemoryKind::kHost || ucx_knows_device_) {
    ucp_mem_map_params_t params{};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                        UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
    params.address = data;
    params.length = bytes;
    params.memory_type = kind == MemoryKind::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
    absl::Status status =
        UcxStatus(ucp_mem_map(context_.get(), &params, &memory.handle), "registering memory");
    if (!status.ok() && kind == MemoryKind::kHost) return status;
    if (!status.ok()) {
      memory.handle = nullptr;
      NotDirect(std::string(status.message()));
    }
  }
  absl::MutexLock lock(&memory_mutex_);
  memory_.push_back(memory);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<char>> UcxNode::AllocateScratch(size_t bytes) {
  if (device() == nullptr) return Transport::AllocateScratch(bytes);
  const absl::StatusOr<char*> data = device()->Allocate(DeviceMemory::Space::kDevice, bytes);
  if (!data.ok()) return data.status();
  const absl::Status mapped = MapMemory(*data, bytes, MemoryKind::kCuda);
  if (!mapped.ok()) {
    device()->Free(DeviceMemory::Space::kDevice, *data);
    return mapped;
  }
  return std::shared_ptr<char>(*data, [this](char* scratch) {
    {
      absl::MutexLock lock(&memory_mutex_);
      const auto it = std::find_if(memory_.begin(), memory_.end(), [scratch](const auto& memory) {
        return memory.data == scratch;
      });
      if (it->handle != nullptr) ucp_mem_unmap(context_.get(), it->handle);
      memory_.erase(it);
    }
    device()->Free(DeviceMemory::Space::kDevice, scratch);
  });
}

absl::StatusOr<std::shared_ptr<char>> UcxNode::AllocatePinned(size_t bytes) {
  const absl::StatusOr<char*> data = device()->Allocate(DeviceMemory::Space::kPinnedHost, bytes);
  if (!data.ok()) return data.status();
  return std::shared_ptr<char>(
      *data, [this](char* pinned) { device()->Free(DeviceMemory::Space::kPinnedHost, pinned); });
}

std::optional<UcxNode::MemoryHandle> UcxNode::FindMemory(const void* data, size_t length) const {
  absl::MutexLock lock(&memory_mutex_);
  for (const MemoryHandle& memory : memory_) {
    const char* wanted = static_cast<const char*>(data);
    if (wanted >= memory.data && wanted + length <= memory.data + memory.bytes) return memory;
  }
  return std::nullopt;
}

void UcxNode::SetHandler(Channel channel, TransportHandler* handler) {
  absl::Notification done;
  loop_.Post([&] {
    handlers_[static_cast<int>(channel)] = handler;
    done.Notify();
  });
  done.WaitForNotification();
}

absl::Status UcxNode::Listen() {
  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucp_worker_h worker = nullptr;
  absl::Status status = UcxStatus(ucp_worker_create(context_.get(), &worker_params, &worker),
                                  "creating the UCX worker");
  if (!status.ok()) return status;
  worker_.reset(worker);
  status = SetReceiveHandlers();
  if (!status.ok()) return status;

  int worker_fd = -1;
  status = UcxStatus(ucp_worker_get_efd(worker_.get(), &worker_fd), "event descriptor of UCX");
  if (!status.ok()) return status;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = worker_fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, worker_fd, &event) != 0) {
    return absl::InternalError("epoll_ctl");
  }

  const absl::StatusOr<SocketAddress> address = ParseHost(options_.listen_address, options_.port);
  if (!address.ok()) return address.status();
  if (!options_.advertise_address.empty()) {
    const absl::Status parsed = ParseHost(options_.advertise_address, 0).status();
    if (!parsed.ok()) return parsed;
  }
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = address->ucx();
  params.conn_handler = {.cb = &UcxNode::OnConnection, .arg = this};
  ucp_listener_h listener = nullptr;
  status = UcxStatus(ucp_listener_create(worker_.get(), &params, &listener), "listening");
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(status.message(), " on ",
                                     FormatHostPort(options_.listen_address, options_.port)));
  }
  listener_.reset(listener);
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = UcxStatus(ucp_listener_query(listener_.get(), &attributes), "address of the listener");
  if (!status.ok()) return status;
  address_ = FormatHostPort(
      options_.advertise_address.empty() ? options_.listen_address : options_.advertise_address,
      PortOf(attributes.sockaddr));
  resources_ = Capture([this](FILE* out) { ucp_context_print_info(context_.get(), out); });
  return absl::OkStatus();
}

void UcxNode::Main(absl::Status* started, absl::Notification* ready) {
  // UCX opens its transports on this thread, and those of a device need the device.
  absl::Status listening = device() == nullptr ? absl::OkStatus() : device()->MakeCurrent();
  if (listening.ok()) listening = Listen();
  *started = listening;
  ready->Notify();  // `started` and `ready` are gone after this
  if (listening.ok()) {
    while (!stopping_.load(std::memory_order_relaxed)) {
      const bool moved = ucp_worker_progress(worker_.get()) != 0;
      const bool recorded = RunRecorded();
      const bool ready_jobs = loop_.RunReady();
      if (moved || recorded || ready_jobs) {
        spins_ = 0;
        continue;
      }
      if (operations_ > 0) {
        const ClockTime now = loop_.Now();
        const absl::Duration spin = device() == nullptr ? options_.spin : kDeviceSpin;
        if (spins_++ == 0) spin_until_ = now + spin;
        if (now < spin_until_) continue;
      }
      if (device() != nullptr && loop_.NextTimer() - loop_.Now() < kNearTimer) continue;
      spins_ = 0;
      Sleep();
    }
  }
  Shutdown();
}

void UcxNode::Sleep() {
  const ucs_status_t armed = ucp_worker_arm(worker_.get());
  if (armed == UCS_ERR_BUSY) return;  // something arrived meanwhile
  const absl::Duration wait = loop_.NextTimer() - loop_.Now();
  int timeout_ms = -1;
  if (wait != absl::InfiniteDuration()) {
    timeout_ms = static_cast<int>(std::clamp<int64_t>(
        absl::ToInt64Milliseconds(wait + absl::Milliseconds(1)), 0, 60'000));
  }
  if (!jobs_.idle()) timeout_ms = 1;  // nothing wakes us when the device is done
  epoll_event events[4];
  const int count = epoll_wait(epoll_fd_, events, 4, timeout_ms);
  for (int i = 0; i < count; ++i) {
    if (events[i].data.fd != wake_fd_) continue;
    uint64_t posted = 0;
    if (read(wake_fd_, &posted, sizeof(posted)) < 0) break;  // EAGAIN: already taken
  }
}

void UcxNode::Shutdown() {
  listener_.reset();
  if (worker_ == nullptr) return;
  for (const auto& [id, endpoint] : endpoints_) {
    BeginClose(*endpoint, absl::CancelledError("the transport stops"));
  }
  const ClockTime until = loop_.Now() + kShutdownWait;
  while (!endpoints_.empty() && loop_.Now() < until) {
    ucp_worker_progress(worker_.get());
    RunRecorded();
  }
  worker_.reset();
}

absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options) {
  auto node = std::make_unique<UcxNode>(options);
  const absl::Status status = node->Start();
  if (!status.ok()) return status;
  return node;
}

}  // namespace hyserve::kv_transfer
