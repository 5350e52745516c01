// Messages of the UCX transport: active messages out and in.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {
namespace {

unsigned MessageId(Channel channel, bool data) {
  return 2 * static_cast<unsigned>(channel) + (data ? 1 : 0);
}

}  // namespace

absl::Status UcxNode::SetReceiveHandlers() {
  for (int channel = 0; channel < kNumChannels; ++channel) {
    for (const bool data : {false, true}) {
      const unsigned id = MessageId(static_cast<Channel>(channel), data);
      slots_[id] = Slot{this, static_cast<Channel>(channel), data};
      ucp_am_handler_param_t param{};
      param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                         UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
      param.id = id;
      param.flags = UCP_AM_FLAG_WHOLE_MSG;
      param.cb = &UcxNode::OnMessage;
      param.arg = &slots_[id];
      absl::Status status =
          UcxStatus(ucp_worker_set_am_recv_handler(worker_.get(), &param), "message handler");
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

void UcxNode::SendControl(EndpointId endpoint, Channel to, std::string_view message) {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end() || it->second->closing || it->second->handle == nullptr) return;
  auto* operation = new Operation(it->second.get(), Kind::kControl, to, 0, message);
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &UcxNode::OnSendDone;
  param.user_data = operation;
  Post(operation,
       ucp_am_send_nbx(it->second->handle, MessageId(to, false), nullptr, 0,
                       operation->bytes.data(), operation->bytes.size(), &param));
}

void UcxNode::SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                       std::string_view header, const void* data, size_t length) {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end() || it->second->closing || it->second->handle == nullptr) {
    // The answer must not come inside this call.
    loop_.Post([this, from, id] {
      TransportHandler* handler = handlers_[static_cast<int>(from)];
      if (handler != nullptr) handler->OnSent(id, absl::UnavailableError("the endpoint has ended"));
    });
    return;
  }
  auto* operation = new Operation(it->second.get(), Kind::kSend, from, id, header);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
                       UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &UcxNode::OnSendDone;
  param.user_data = operation;
  if (const MemoryHandle* memory = FindMemory(data, length)) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.memory_type =
        memory->kind == MemoryKind::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
    // Device memory must not pass through a copy of UCX's choosing.
    if (memory->kind == MemoryKind::kCuda) param.flags |= UCP_AM_SEND_FLAG_RNDV;
  }
  ++operations_;
  Post(operation, ucp_am_send_nbx(it->second->handle, MessageId(to, true), operation->bytes.data(),
                                  operation->bytes.size(), data, length, &param));
}

void UcxNode::Post(Operation* operation, ucs_status_ptr_t result) {
  ++operation->endpoint->operations;
  if (UCS_PTR_IS_PTR(result)) return;  // a callback will come
  Complete(operation, result == nullptr ? absl::OkStatus()
                                        : UcxStatus(UCS_PTR_STATUS(result), "message"));
}

void UcxNode::Complete(Operation* operation, absl::Status status) {
  operation->status = std::move(status);
  completed_.push_back(operation);
}

void UcxNode::OnSendDone(void* request, ucs_status_t status, void* arg) {
  auto* operation = static_cast<Operation*>(arg);
  operation->endpoint->node->Complete(operation, UcxStatus(status, "send"));
  ucp_request_free(request);
}

void UcxNode::OnReceiveDone(void* request, ucs_status_t status, size_t length, void* arg) {
  auto* operation = static_cast<Operation*>(arg);
  absl::Status result = UcxStatus(status, "receive");
  if (result.ok() && length != operation->length) result = absl::DataLossError("received length");
  operation->endpoint->node->Complete(operation, std::move(result));
  ucp_request_free(request);
}

ucs_status_t UcxNode::OnMessage(void* arg, const void* header, size_t header_length, void* data,
                                size_t length, const ucp_am_recv_param_t* param) {
  const Slot& slot = *static_cast<const Slot*>(arg);
  UcxNode& node = *slot.node;
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return UCS_OK;
  const auto it = node.by_handle_.find(param->reply_ep);
  // Dropped: nothing of an endpoint that ends, nothing that breaks the transport's own limits.
  if (it == node.by_handle_.end() || it->second->closing) return UCS_OK;
  if (slot.data) {
    if (header_length == 0 || header_length > kMaxDataHeaderBytes) return UCS_OK;
    return node.Announced(*it->second, slot.channel,
                          std::string_view(static_cast<const char*>(header), header_length), data,
                          length, rendezvous);
  }
  if (rendezvous || length == 0 || length > kMaxControlBytes) return UCS_OK;
  node.inbound_.push_back(
      {it->second->id, slot.channel, std::string(static_cast<const char*>(data), length)});
  return UCS_OK;
}

ucs_status_t UcxNode::Announced(Endpoint& endpoint, Channel channel, std::string_view header,
                                void* data, size_t length, bool rendezvous) {
  TransportHandler* handler = handlers_[static_cast<int>(channel)];
  if (handler == nullptr) return UCS_OK;
  const std::optional<ReceiveTarget> target = handler->OnData(endpoint.id, header, length);
  if (!target) return UCS_OK;
  auto* operation = new Operation(&endpoint, Kind::kReceive, channel, target->id);
  operation->length = length;
  ++operations_;
  const MemoryHandle* memory = FindMemory(target->data, length);
  if (!rendezvous) {
    ++endpoint.operations;
    if (memory != nullptr && memory->kind == MemoryKind::kCuda) {
      Complete(operation, absl::DataLossError("data for device memory came without rendezvous"));
    } else {
      std::memcpy(target->data, data, length);
      Complete(operation, absl::OkStatus());
    }
    return UCS_OK;
  }
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &UcxNode::OnReceiveDone;
  param.user_data = operation;
  if (memory != nullptr) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.memory_type =
        memory->kind == MemoryKind::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  }
  const ucs_status_ptr_t result =
      ucp_am_recv_data_nbx(worker_.get(), data, target->data, length, &param);
  Post(operation, result);
  return UCS_PTR_IS_PTR(result) ? UCS_INPROGRESS : UCS_OK;
}

}  // namespace hyserve::kv_transfer
