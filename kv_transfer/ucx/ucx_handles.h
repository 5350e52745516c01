// UCX's handles as owners, its status codes as absl::Status, and socket addresses as text. Internal
// to kv_transfer/ucx.
#ifndef HYSERVE_KV_TRANSFER_UCX_UCX_HANDLES_H_
#define HYSERVE_KV_TRANSFER_UCX_UCX_HANDLES_H_

#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_transfer/ucx/ucx_transport.h"

namespace hyserve::kv_transfer {

// The one place where UCX codes are converted. OK for UCS_OK. `what` says what was tried.
absl::Status UcxStatus(ucs_status_t status, const char* what);

template <auto kDestroy>
struct UcxDeleter {
  template <typename T>
  void operator()(T* handle) const {
    kDestroy(handle);
  }
};
using UcxConfig = std::unique_ptr<ucp_config_t, UcxDeleter<ucp_config_release>>;
using UcxContext = std::unique_ptr<std::remove_pointer_t<ucp_context_h>, UcxDeleter<ucp_cleanup>>;
using UcxWorker =
    std::unique_ptr<std::remove_pointer_t<ucp_worker_h>, UcxDeleter<ucp_worker_destroy>>;
using UcxListener =
    std::unique_ptr<std::remove_pointer_t<ucp_listener_h>, UcxDeleter<ucp_listener_destroy>>;

// Applies the options' settings; appends "NAME = value" lines to `effective`. INVALID_ARGUMENT
// names the setting that UCX refuses.
absl::StatusOr<UcxContext> OpenContext(const UcxOptions& options, std::string& effective);

// Numeric addresses only, so that nothing blocks on a name server.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  ucs_sock_addr_t ucx() const {
    return {reinterpret_cast<const sockaddr*>(&storage), length};
  }
};
absl::StatusOr<SocketAddress> ParseHost(std::string_view host, int port);
// "127.0.0.1:7600", "[::1]:7600".
absl::StatusOr<SocketAddress> ParseHostPort(std::string_view address);
std::string FormatHostPort(std::string_view host, int port);
int PortOf(const sockaddr_storage& address);

// What a UCX print function writes.
std::string Capture(const std::function<void(FILE*)>& print);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_UCX_UCX_HANDLES_H_
