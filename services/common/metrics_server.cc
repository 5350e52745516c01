#include "services/common/metrics_server.h"

#include <httplib.h>

#include <thread>

#include "absl/strings/numbers.h"
#include "base/strings.h"

namespace hyserve::common {
namespace {

constexpr int kThreads = 2;
constexpr int kMaxQueuedConnections = 64;
constexpr time_t kTimeoutSeconds = 5;

// httplib's pool, with connections beyond the bound closed instead of queued.
class BoundedTaskQueue : public httplib::TaskQueue {
 public:
  BoundedTaskQueue() : pool_(kThreads) {}
  void enqueue(std::function<void()> task) override {
    waiting_.fetch_add(1);
    pool_.enqueue([this, task = std::move(task)] {
      task();
      waiting_.fetch_sub(1);
    });
  }
  void shutdown() override { pool_.shutdown(); }
  bool full() const { return waiting_.load() >= kMaxQueuedConnections; }

 private:
  httplib::ThreadPool pool_;
  std::atomic<int> waiting_{0};
};

void Answer(const std::string& reason, httplib::Response* response) {
  response->status = reason.empty() ? 200 : 503;
  response->set_content(reason.empty() ? "ok\n" : reason + "\n", "text/plain");
}

}  // namespace

struct MetricsServer::Impl {
  httplib::Server server;
  std::thread thread;
  int port = 0;
  std::atomic<BoundedTaskQueue*> queue{nullptr};
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& address, Metrics* metrics, std::function<std::string()> not_ready_reason,
    std::function<void()> before_scrape) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(StrCat("not host:port: ", address));
  }
  const std::string host = address.substr(0, colon);
  auto impl = std::make_unique<Impl>();
  httplib::Server& server = impl->server;
  Impl* const raw = impl.get();
  server.new_task_queue = [raw] {
    auto* const queue = new BoundedTaskQueue();
    raw->queue = queue;
    return queue;
  };
  // httplib would share the port with another process.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  server.set_payload_max_length(4096);
  server.set_keep_alive_max_count(1);
  server.set_read_timeout(kTimeoutSeconds);
  server.set_write_timeout(kTimeoutSeconds);
  server.set_pre_routing_handler(
      [raw](const httplib::Request& request, httplib::Response& response) {
        const BoundedTaskQueue* const queue = raw->queue;
        if (queue != nullptr && queue->full()) {
          response.status = 503;
          return httplib::Server::HandlerResponse::Handled;
        }
        if (request.method == "GET" || request.method == "HEAD") {
          return httplib::Server::HandlerResponse::Unhandled;
        }
        response.status = 405;
        response.set_header("Allow", "GET");
        return httplib::Server::HandlerResponse::Handled;
      });
  server.Get("/metrics", [metrics, before_scrape](const httplib::Request&,
                                                  httplib::Response& response) {
    if (before_scrape) before_scrape();
    response.set_content(metrics->Expose(), "text/plain; version=0.0.4");
  });
  server.Get("/livez", [](const httplib::Request&, httplib::Response& response) {
    Answer("", &response);
  });
  server.Get("/readyz", [not_ready_reason](const httplib::Request&, httplib::Response& response) {
    Answer(not_ready_reason(), &response);
  });
  impl->port = port == 0 ? server.bind_to_any_port(host) : port;
  if (impl->port < 0 || (port != 0 && !server.bind_to_port(host, port))) {
    return absl::UnavailableError(StrCat("cannot listen on ", address, " for metrics"));
  }
  impl->thread = std::thread([raw] { raw->server.listen_after_bind(); });
  while (!server.is_running()) std::this_thread::yield();
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() {
  impl_->server.stop();
  impl_->thread.join();
}

int MetricsServer::port() const { return impl_->port; }

}  // namespace hyserve::common
