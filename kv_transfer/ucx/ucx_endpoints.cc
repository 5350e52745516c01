// Endpoints of the UCX transport: how they begin and how they end.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {

UcxNode::Endpoint* UcxNode::AddEndpoint(const ucp_ep_params_t& given, const char* what) {
  auto owned = std::make_unique<Endpoint>();
  Endpoint* endpoint = owned.get();
  endpoint->node = this;
  endpoint->id = next_endpoint_++;
  endpoints_.emplace(endpoint->id, std::move(owned));
  ucp_ep_params_t params = given;
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {.cb = &UcxNode::OnError, .arg = endpoint};
  const absl::Status status =
      UcxStatus(ucp_ep_create(worker_.get(), &params, &endpoint->handle), what);
  if (status.ok()) {
    by_handle_[endpoint->handle] = endpoint;
  } else {
    endpoint->handle = nullptr;
    ending_.emplace_back(endpoint->id, absl::UnavailableError(status.message()));
  }
  return endpoint;
}

absl::StatusOr<EndpointId> UcxNode::Connect(std::string_view address) {
  const absl::StatusOr<SocketAddress> parsed = ParseHostPort(address);
  if (!parsed.ok()) return parsed.status();
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr = parsed->ucx();
  Endpoint* endpoint = AddEndpoint(params, "connecting");
  Greet(*endpoint);
  return endpoint->id;
}

void UcxNode::OnConnection(ucp_conn_request_h request, void* self) {
  static_cast<UcxNode*>(self)->connections_.push_back(request);
}

void UcxNode::Accept(ucp_conn_request_h request) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  AddEndpoint(params, "accepting")->accepted = true;
}

void UcxNode::OnError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto* endpoint = static_cast<Endpoint*>(arg);
  endpoint->node->ending_.emplace_back(
      endpoint->id, absl::UnavailableError(ucs_status_string(status)));
}

void UcxNode::Close(EndpointId endpoint) {
  // Not at once: this may be inside a callback of UCX.
  if (endpoints_.contains(endpoint)) ending_.emplace_back(endpoint, absl::CancelledError("closed"));
}

void UcxNode::BeginClose(Endpoint& endpoint, absl::Status reason) {
  if (endpoint.closing) return;
  endpoint.closing = true;
  endpoint.reason = std::move(reason);
  closing_.push_back(endpoint.id);
  DropWaiting(endpoint);
  if (endpoint.handle == nullptr) {
    endpoint.close_done = true;
    return;
  }
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.cb.send = &UcxNode::OnCloseDone;
  param.user_data = &endpoint;
  const ucs_status_ptr_t result = ucp_ep_close_nbx(endpoint.handle, &param);
  // Without a request the close is over, well or (the connection was gone already) not.
  if (!UCS_PTR_IS_PTR(result)) endpoint.close_done = true;
}

void UcxNode::OnCloseDone(void* request, ucs_status_t, void* endpoint) {
  static_cast<Endpoint*>(endpoint)->close_done = true;
  ucp_request_free(request);
}

// Whatever UCX says of a direct receive that failed: a copy that it has begun may still run.
bool UcxNode::NeedsFence(const Operation& operation) {
  const bool receive =
      operation.kind == Kind::kReceive || operation.kind == Kind::kCheckReceive;
  return receive && operation.path == DataPath::kDirect && !operation.status.ok() &&
         !operation.fenced;
}

bool UcxNode::RunRecorded() {
  bool any = false;
  for (size_t i = 0; i < connections_.size(); ++i, any = true) Accept(connections_[i]);
  connections_.clear();
  for (; !inbound_.empty(); any = true) {
    const Inbound inbound = std::move(inbound_.front());
    inbound_.pop_front();
    TransportHandler* handler = handlers_[static_cast<int>(inbound.channel)];
    if (handler != nullptr) handler->OnControl(inbound.from, inbound.message);
  }
  for (; !path_messages_.empty(); any = true) {
    const auto [id, message] = std::move(path_messages_.front());
    path_messages_.pop_front();
    const auto it = endpoints_.find(id);
    if (it != endpoints_.end() && !it->second->closing) OnPathMessage(*it->second, message);
  }
  any = jobs_.Poll() || any;
  any = fence_.RunDone() || any;
  for (; !completed_.empty(); any = true) {
    Operation* operation = completed_.front();
    completed_.pop_front();
    if (ContinueStaged(operation)) continue;
    if (NeedsFence(*operation)) {
      fence_.Add([this, operation] {
        operation->fenced = true;
        completed_.push_back(operation);
      });
      continue;
    }
    Finish(std::unique_ptr<Operation>(operation));
  }
  for (; !ending_.empty(); any = true) {
    const auto [id, status] = std::move(ending_.back());
    ending_.pop_back();
    const auto it = endpoints_.find(id);
    if (it != endpoints_.end()) BeginClose(*it->second, status);
  }
  // An endpoint is over when UCX has closed it and every operation on it has completed. If UCX ever
  // kept one back, its memory would stay quarantined: the only safe answer.
  for (size_t i = 0; i < closing_.size();) {
    const auto it = endpoints_.find(closing_[i]);
    Endpoint& endpoint = *it->second;
    if (!endpoint.close_done || endpoint.operations > 0) {
      ++i;
      continue;
    }
    closing_[i] = closing_.back();
    closing_.pop_back();
    const std::unique_ptr<Endpoint> ended = std::move(it->second);
    endpoints_.erase(it);
    if (ended->handle != nullptr) by_handle_.erase(ended->handle);
    for (TransportHandler* handler : handlers_) {
      if (handler != nullptr) handler->OnEndpointClosed(ended->id, ended->reason);
    }
    any = true;
  }
  return any;
}

std::string UcxNode::EndpointDescription(EndpointId endpoint) const {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end() || it->second->handle == nullptr || it->second->closing) return "";
  const std::string text =
      Capture([&](FILE* out) { ucp_ep_print_info(it->second->handle, out); });
  // Lines such as "#  lane[0]:  2:tcp/lo.0 md[1] ...": keep "tcp/lo" of each lane once.
  std::vector<std::string> lanes;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const size_t lane = line.find("lane[");
    const size_t slash = line.find('/', lane);
    if (lane == absl::string_view::npos || slash == absl::string_view::npos) continue;
    const size_t begin = line.find_last_of(": ", slash) + 1;
    size_t end = line.find_first_of(". \t", slash);
    if (end == absl::string_view::npos) end = line.size();
    const std::string name(line.substr(begin, end - begin));
    if (std::find(lanes.begin(), lanes.end(), name) == lanes.end()) lanes.push_back(name);
  }
  std::string result;
  for (const std::string& name : lanes) absl::StrAppend(&result, result.empty() ? "" : ",", name);
  const DataPath path = EndpointPath(endpoint);
  if (device() != nullptr && path != DataPath::kUnknown) {
    absl::StrAppend(&result, " device memory ", std::string(Name(path)));
  }
  return result;
}

}  // namespace hyserve::kv_transfer
