#include "services/router/router_service.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

template <typename Message>
absl::StatusOr<Message> Parse(const grpc::ByteBuffer& bytes) {
  Message message;
  grpc::ByteBuffer copy = bytes;  // shares the memory; parsing consumes it
  if (grpc::SerializationTraits<Message>::Deserialize(&copy, &message).ok()) return message;
  return absl::InvalidArgumentError(
      StrCat("request: not a ", Message::descriptor()->full_name(),
             ": malformed protobuf, or a string field that is not UTF-8"));
}

// Ends a unary call.
template <typename Response>
void Finish(grpc::ServerUnaryReactor* reactor, const absl::StatusOr<Response>& result,
            grpc::ByteBuffer* response) {
  if (!result.ok()) return reactor->Finish(common::ToGrpcStatus(result.status()));
  bool own_buffer = false;
  reactor->Finish(
      grpc::SerializationTraits<Response>::Serialize(*result, response, &own_buffer));
}

template <typename Response>
grpc::ServerUnaryReactor* FinishWith(grpc::CallbackServerContext* context,
                                     const absl::StatusOr<Response>& result,
                                     grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  Finish(reactor, result, response);
  return reactor;
}

absl::StatusOr<ModelInfo> ServedModel(const RouterContext& router, const std::string& wanted) {
  std::optional<ModelInfo> model = router.registry->model();
  if (!model.has_value()) {
    return common::WithRetryDelay(
        absl::UnavailableError("no_capacity: no worker has registered yet"), absl::Seconds(1));
  }
  if (!wanted.empty() && wanted != model->name) {
    return absl::NotFoundError(
        StrCat("model: served is \"", model->name, "\"; got \"", wanted, "\""));
  }
  return *std::move(model);
}

absl::StatusOr<v1::TokenizeResponse> TokenizeNow(const RouterContext& router,
                                                 const v1::TokenizeRequest& request) {
  constexpr size_t kMaxTokens = size_t{1} << 24;
  auto ids = request.has_chat() ? router.text->TokenizeChat(request.chat(), kMaxTokens)
                                : router.text->TokenizeText(request.text(), kMaxTokens);
  if (!ids.ok()) return ids.status();
  v1::TokenizeResponse response;
  response.mutable_token_ids()->Add(ids->begin(), ids->end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> DetokenizeNow(const RouterContext& router,
                                                     const v1::DetokenizeRequest& request) {
  const absl::StatusOr<ModelInfo> model = ServedModel(router, request.model());
  if (!model.ok()) return model.status();
  const tokenizer::Tokenizer* const tokenizer = router.text->tokenizer();
  if (tokenizer == nullptr) {
    return absl::FailedPreconditionError("token_ids: the served model has no tokenizer");
  }
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const int32_t id = request.token_ids(i);
    if (id >= 0 && id < model->vocab_size) continue;
    return common::BadRequestError(
        {{StrCat("token_ids[", i, "]"),
          StrCat("must be a token id in [0, ", model->vocab_size, "); got ", id)}});
  }
  v1::DetokenizeResponse response;
  response.set_text(tokenizer->Decode(
      {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())},
      !request.keep_special_tokens()));
  return response;
}

absl::StatusOr<v1::GetModelResponse> DescribeModel(const RouterContext& router,
                                                   const v1::GetModelRequest& request) {
  const absl::StatusOr<ModelInfo> model = ServedModel(router, request.model());
  if (!model.ok()) return model.status();
  v1::GetModelResponse response;
  response.set_name(model->name);
  response.set_vocab_size(model->vocab_size);
  response.set_max_context_tokens(model->max_context_tokens);
  response.set_kv_bytes_per_token(model->kv_bytes_per_block / kTokensPerBlock);
  response.set_full_attention_bytes_per_token(model->full_attention_bytes_per_block /
                                              kTokensPerBlock);
  response.set_slab_bytes(model->slab_bytes);
  for (const auto& worker : router.registry->stats(absl::Now()).workers) {
    const bool prefill = worker.role != v1::WORKER_ROLE_DECODE;
    const bool decode = worker.role != v1::WORKER_ROLE_PREFILL;
    response.set_prefill_workers(response.prefill_workers() + (prefill ? 1 : 0));
    response.set_decode_workers(response.decode_workers() + (decode ? 1 : 0));
  }
  return response;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* RouterService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return ActiveRequest::Start(router_, context, Parse<v1::GenerateRequest>(*request));
}

grpc::ServerUnaryReactor* RouterService::Tokenize(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  using Result = absl::StatusOr<v1::TokenizeResponse>;
  auto parsed = Parse<v1::TokenizeRequest>(*request);
  if (!parsed.ok()) return FinishWith<v1::TokenizeResponse>(context, parsed.status(), response);
  const absl::StatusOr<ModelInfo> model = ServedModel(*router_, parsed->model());
  if (!model.ok()) return FinishWith<v1::TokenizeResponse>(context, model.status(), response);
  if (absl::Status status = ValidateTokenize(*parsed, *model, router_->limits); !status.ok()) {
    return FinishWith<v1::TokenizeResponse>(context, status, response);
  }
  if (static_cast<int64_t>(request->Length()) <= router_->inline_text_bytes) {
    return FinishWith(context, TokenizeNow(*router_, *parsed), response);
  }
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  // A unary call keeps its response until its reactor is finished, even when cancelled.
  const bool queued = router_->text_pool->Run(
      [this, reactor, response,
       message = std::make_shared<const v1::TokenizeRequest>(*std::move(parsed))] {
        Finish(reactor, TokenizeNow(*router_, *message), response);
      });
  if (queued) return reactor;
  Finish(reactor,
         Result(common::WithRetryDelay(
             absl::ResourceExhaustedError("overloaded: too many texts wait to be tokenized"),
             absl::Seconds(1))),
         response);
  return reactor;
}

grpc::ServerUnaryReactor* RouterService::Detokenize(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  const auto parsed = Parse<v1::DetokenizeRequest>(*request);
  if (!parsed.ok()) return FinishWith<v1::DetokenizeResponse>(context, parsed.status(), response);
  return FinishWith(context, DetokenizeNow(*router_, *parsed), response);
}

grpc::ServerUnaryReactor* RouterService::GetModel(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  const auto parsed = Parse<v1::GetModelRequest>(*request);
  if (!parsed.ok()) return FinishWith<v1::GetModelResponse>(context, parsed.status(), response);
  return FinishWith(context, DescribeModel(*router_, *parsed), response);
}

}  // namespace hyserve::router
