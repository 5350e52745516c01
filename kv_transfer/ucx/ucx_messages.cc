// Messages of the UCX transport: active messages out and in.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_transfer/ucx/ucx_node.h"

namespace hyserve::kv_transfer {

unsigned UcxNode::MessageId(MessageType type, Channel channel) {
  constexpr unsigned kOwn = kTypesPerChannel * kNumChannels;
  if (type == MessageType::kPath) return kOwn;
  if (type == MessageType::kCheck) return kOwn + 1;
  return kTypesPerChannel * static_cast<unsigned>(channel) + static_cast<unsigned>(type);
}

absl::Status UcxNode::SetReceiveHandlers() {
  for (int channel = 0; channel < kNumChannels; ++channel) {
    for (const MessageType type : {MessageType::kControl, MessageType::kData,
                                   MessageType::kDeviceData, MessageType::kPath,
                                   MessageType::kCheck}) {
      const unsigned id = MessageId(type, static_cast<Channel>(channel));
      slots_[id] = Slot{this, type, static_cast<Channel>(channel)};
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

UcxNode::Operation* UcxNode::NewOperation(Endpoint& endpoint, Kind kind) {
  auto* operation = new Operation();
  operation->endpoint = &endpoint;
  operation->kind = kind;
  ++endpoint.operations;
  if (kind != Kind::kControl) ++operations_;
  return operation;
}

void UcxNode::SendControl(EndpointId endpoint, Channel to, std::string_view message) {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end()) return;
  SendSmall(*it->second, MessageId(MessageType::kControl, to), message);
}

void UcxNode::SendSmall(Endpoint& endpoint, unsigned message_id, std::string_view message) {
  if (endpoint.closing || endpoint.handle == nullptr) return;
  Operation* operation = NewOperation(endpoint, Kind::kControl);
  operation->bytes = message;
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  AddMemory(MemoryHandle{}, param);
  param.flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &UcxNode::OnSendDone;
  param.user_data = operation;
  Post(operation, ucp_am_send_nbx(endpoint.handle, message_id, nullptr, 0,
                                  operation->bytes.data(), operation->bytes.size(), &param));
}

void UcxNode::SendData(EndpointId endpoint, Channel from, Channel to, OperationId id,
                       std::string_view header, const void* data, size_t length) {
  SendParts(endpoint, from, to, id, header,
            {{static_cast<char*>(const_cast<void*>(data)), length}});  // only read
}

void UcxNode::SendParts(EndpointId endpoint, Channel from, Channel to, OperationId id,
                        std::string_view header, const std::vector<MemoryPart>& parts) {
  const auto it = endpoints_.find(endpoint);
  if (it == endpoints_.end() || it->second->closing || it->second->handle == nullptr) {
    // The answer must not come inside this call.
    loop_.Post([this, from, id] {
      TransportHandler* handler = handlers_[static_cast<int>(from)];
      if (handler != nullptr) handler->OnSent(id, absl::UnavailableError("the endpoint has ended"));
    });
    return;
  }
  Operation* operation = NewOperation(*it->second, Kind::kSend);
  operation->channel = from;
  operation->to = to;
  operation->id = id;
  operation->bytes = header;
  operation->data = parts[0].data;
  for (const MemoryPart& part : parts) operation->length += part.bytes;
  if (parts.size() > 1) operation->parts = parts;
  const std::optional<MemoryHandle> memory = FindMemory(parts[0].data, parts[0].bytes);
  if (memory && memory->kind == MemoryKind::kCuda) {
    SendDeviceData(operation);
  } else {
    SendMessage(operation, MessageType::kData, memory);
  }
}

void UcxNode::AddMemory(const std::optional<MemoryHandle>& memory, ucp_request_param_t& param) {
  if (!memory) return;
  const bool cuda = memory->kind == MemoryKind::kCuda;
  param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.memory_type = cuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  if (cuda && memory->handle != nullptr) {
    // One registration of the whole pool for all messages.
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    param.memh = memory->handle;
  }
}

void UcxNode::SendMessage(Operation* operation, MessageType type,
                          const std::optional<MemoryHandle>& memory) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_AM_SEND_FLAG_REPLY;
  // Device memory must not pass through a copy of UCX's choosing, and a staged message must wait
  // until the receiver has room for it.
  if (operation->path != DataPath::kHost) param.flags |= UCP_AM_SEND_FLAG_RNDV;
  param.cb.send = &UcxNode::OnSendDone;
  param.user_data = operation;
  AddMemory(memory, param);
  const char* data = operation->slot != nullptr ? operation->slot : operation->data;
  Post(operation,
       ucp_am_send_nbx(operation->endpoint->handle, MessageId(type, operation->to),
                       operation->bytes.data(), operation->bytes.size(), data, operation->length,
                       &param));
}

void UcxNode::Post(Operation* operation, ucs_status_ptr_t result) {
  if (UCS_PTR_IS_PTR(result)) return;  // a callback will come
  Complete(operation, result == nullptr ? absl::OkStatus()
                                        : UcxStatus(UCS_PTR_STATUS(result), "message"));
}

void UcxNode::Complete(Operation* operation, absl::Status status) {
  operation->status = std::move(status);
  completed_.push_back(operation);
}

void UcxNode::Finish(std::unique_ptr<Operation> operation) {
  Endpoint& endpoint = *operation->endpoint;
  --endpoint.operations;
  if (operation->kind == Kind::kControl) return;
  --operations_;
  ReleaseSlot(operation.get());
  if (operation->kind == Kind::kCheckSend || operation->kind == Kind::kCheckReceive) {
    FinishCheck(*operation);
    return;
  }
  const bool sent = operation->kind == Kind::kSend;
  if (operation->status.ok()) {
    (sent ? paths_.sent(operation->path) : paths_.received(operation->path))
        .Add(static_cast<int64_t>(operation->length));
  }
  TransportHandler* handler = handlers_[static_cast<int>(operation->channel)];
  if (handler == nullptr) return;
  if (sent) {
    handler->OnSent(operation->id, operation->status);
  } else {
    handler->OnReceived(operation->id, operation->status);
  }
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
  Endpoint& endpoint = *it->second;
  if (slot.type == MessageType::kControl || slot.type == MessageType::kPath) {
    if (rendezvous || length == 0 || length > kMaxControlBytes) return UCS_OK;
    const std::string_view message(static_cast<const char*>(data), length);
    if (slot.type == MessageType::kPath) {
      node.path_messages_.emplace_back(endpoint.id, message);
    } else {
      node.inbound_.push_back({endpoint.id, slot.channel, std::string(message)});
    }
    return UCS_OK;
  }
  if (header_length == 0 || header_length > kMaxDataHeaderBytes) return UCS_OK;
  const std::string_view header_text(static_cast<const char*>(header), header_length);
  if (slot.type == MessageType::kCheck) {
    return rendezvous ? node.CheckAnnounced(endpoint, header_text, data, length) : UCS_OK;
  }
  return node.Announced(endpoint, slot, header_text, data, length, rendezvous);
}

ucs_status_t UcxNode::Announced(Endpoint& endpoint, const Slot& slot, std::string_view header,
                                void* data, size_t length, bool rendezvous) {
  TransportHandler* handler = handlers_[static_cast<int>(slot.channel)];
  if (handler == nullptr) return UCS_OK;
  const std::optional<ReceiveTarget> target = handler->OnData(endpoint.id, header, length);
  if (!target) return UCS_OK;
  Operation* operation = NewOperation(endpoint, Kind::kReceive);
  operation->channel = slot.channel;
  operation->id = target->id;
  operation->data = static_cast<char*>(target->data);
  operation->length = length;
  operation->parts = target->parts;
  const std::optional<MemoryHandle> memory =
      operation->parts.empty() ? FindMemory(operation->data, length)
                               : FindMemory(operation->parts[0].data, operation->parts[0].bytes);
  const bool to_device = memory && memory->kind == MemoryKind::kCuda;
  const bool from_device = slot.type == MessageType::kDeviceData;
  operation->path = !to_device     ? DataPath::kHost
                    : from_device ? DataPath::kDirect
                                  : DataPath::kStaged;
  endpoint.received = operation->path;
  if (operation->path == DataPath::kDirect && (!rendezvous || memory->handle == nullptr)) {
    Complete(operation, absl::DataLossError("direct device data where none was agreed"));
    return UCS_OK;
  }
  if (operation->path == DataPath::kStaged || !operation->parts.empty()) {
    if (rendezvous) {
      operation->announced = data;
    } else {
      operation->bytes.assign(static_cast<const char*>(data), length);
    }
    StageReceive(operation);
    return rendezvous && operation->announced != nullptr ? UCS_INPROGRESS : UCS_OK;
  }
  if (!rendezvous) {
    std::memcpy(target->data, data, length);
    Complete(operation, absl::OkStatus());
    return UCS_OK;
  }
  return PostReceive(operation, data, memory) ? UCS_INPROGRESS : UCS_OK;
}

bool UcxNode::PostReceive(Operation* operation, void* announced,
                          const std::optional<MemoryHandle>& memory) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &UcxNode::OnReceiveDone;
  param.user_data = operation;
  AddMemory(memory, param);
  char* data = operation->slot != nullptr ? operation->slot : operation->data;
  const ucs_status_ptr_t result =
      ucp_am_recv_data_nbx(worker_.get(), announced, data, operation->length, &param);
  Post(operation, result);
  return UCS_PTR_IS_PTR(result);
}

}  // namespace hyserve::kv_transfer
