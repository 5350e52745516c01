#include "kv_transfer/ucx/ucx_handles.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {

absl::Status UcxStatus(ucs_status_t status, const char* what) {
  if (status == UCS_OK) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_CANCELED: return absl::CancelledError(text);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR: return absl::InvalidArgumentError(text);
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE: return absl::ResourceExhaustedError(text);
    case UCS_ERR_UNSUPPORTED: return absl::UnimplementedError(text);
    case UCS_ERR_MESSAGE_TRUNCATED: return absl::DataLossError(text);
    default: return absl::UnavailableError(text);  // the peer, the link or the device
  }
}

namespace {

// Settings of single transports have to be named without the transport's prefix in UCX 1.13, and
// later versions check the name: so the short name first, then the full one.
ucs_status_t Modify(ucp_config_t* config, const std::string& name, const std::string& value) {
  constexpr char kTcpPrefix[] = "TCP_";
  if (name.rfind(kTcpPrefix, 0) == 0) {
    const std::string field = name.substr(sizeof(kTcpPrefix) - 1);
    if (ucp_config_modify(config, field.c_str(), value.c_str()) == UCS_OK) return UCS_OK;
  }
  return ucp_config_modify(config, name.c_str(), value.c_str());
}

}  // namespace

absl::StatusOr<UcxContext> OpenContext(const UcxOptions& options, std::string& effective) {
  ucp_config_t* raw_config = nullptr;
  absl::Status status =
      UcxStatus(ucp_config_read(nullptr, nullptr, &raw_config), "reading the UCX configuration");
  if (!status.ok()) return status;
  const UcxConfig config(raw_config);

  std::string transports = options.transports;
  if (options.device != nullptr && transports.find("cuda") == std::string::npos &&
      transports != "all") {
    transports += ",cuda_copy,cuda_ipc";
  }
  std::vector<std::pair<std::string, std::string>> settings = {
      {"TLS", transports},
      {"RNDV_THRESH", absl::StrCat(options.rendezvous_threshold_bytes)},
      // With TCP's emulated put a peer that closes by force can abort this process inside UCX 1.13
      // (an assertion on an acknowledgement that comes too late). Without it rendezvous data
      // travels as active messages.
      {"TCP_PUT_ENABLE", "n"},
  };
  if (options.device != nullptr) {
    // The receiver reads: nothing then writes into its pages but its own copies.
    settings.emplace_back("RNDV_SCHEME", "get_zcopy");
    // Its record of allocations misses those that it could not watch, and takes them for host
    // memory. Without it UCX asks the driver; we say the type of all memory anyway.
    settings.emplace_back("MEMTYPE_CACHE", "n");
#if UCP_API_VERSION >= UCP_VERSION(1, 17)
    // Left to itself, UCX does so only on machines that show NVLinks, and goes through the host
    // elsewhere. Unknown, and not needed, where UCX found no CUDA.
    if (ucp_config_modify(config.get(), "CUDA_IPC_ENABLE_GET_ZCOPY", "on") == UCS_OK) {
      effective += "CUDA_IPC_ENABLE_GET_ZCOPY = on\n";
    }
#endif
  }
  if (!options.net_devices.empty()) settings.emplace_back("NET_DEVICES", options.net_devices);
  if (!options.tcp_port_range.empty()) {
    settings.emplace_back("TCP_PORT_RANGE", options.tcp_port_range);
  }
  settings.insert(settings.end(), options.settings.begin(), options.settings.end());
  for (const auto& [name, value] : settings) {
    const ucs_status_t code = Modify(config.get(), name, value);
    if (code != UCS_OK) {
      return absl::InvalidArgumentError(
          absl::StrCat("UCX setting ", name, " = ", value, ": ", ucs_status_string(code)));
    }
    absl::StrAppend(&effective, name, " = ", value, "\n");
  }

  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 0;
  ucp_context_h raw_context = nullptr;
  status = UcxStatus(ucp_init(&params, config.get(), &raw_context), "starting UCX");
  if (!status.ok()) return status;
  return UcxContext(raw_context);
}

absl::StatusOr<SocketAddress> ParseHost(std::string_view host, int port) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port must be in [0, 65535]; got ", port));
  }
  const std::string text(host);
  SocketAddress address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  if (inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    address.length = sizeof(sockaddr_in);
    return address;
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    address.length = sizeof(sockaddr_in6);
    return address;
  }
  return absl::InvalidArgumentError(absl::StrCat("not a numeric address: '", text, "'"));
}

absl::StatusOr<SocketAddress> ParseHostPort(std::string_view address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string_view::npos ||
      !absl::SimpleAtoi(std::string(address.substr(colon + 1)), &port) || port == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("an address is written ip:port; got '", std::string(address), "'"));
  }
  std::string_view host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return ParseHost(host, port);
}

std::string FormatHostPort(std::string_view host, int port) {
  const std::string text(host);
  return text.find(':') == std::string::npos ? absl::StrCat(text, ":", port)
                                             : absl::StrCat("[", text, "]:", port);
}

int PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

std::string Capture(const std::function<void(FILE*)>& print) {
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&text, &size);
  if (stream == nullptr) return "";
  print(stream);
  fclose(stream);
  std::string result(text, size);
  std::free(text);
  return result;
}

std::vector<std::string> ClearUcxEnvironment() {
  std::vector<std::string> removed;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text(*variable);
    if (text.rfind("UCX_", 0) == 0 && text.rfind("UCX_LOG_LEVEL=", 0) != 0 &&
        text.rfind("UCX_HANDLE_ERRORS=", 0) != 0) {
      removed.push_back(text);
    }
  }
  for (const std::string& text : removed) unsetenv(text.substr(0, text.find('=')).c_str());
  return removed;
}

std::string UcxVersion() {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  ucp_get_version(&major, &minor, &release);
  return absl::StrCat(major, ".", minor, ".", release);
}

}  // namespace hyserve::kv_transfer
