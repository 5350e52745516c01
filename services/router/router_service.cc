#include "services/router/router_service.h"

#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "base/strings.h"
#include "services/common/status_mapping.h"

namespace hyserve::router {
namespace {

grpc::ServerUnaryReactor* FinishWith(grpc::CallbackServerContext* context,
                                     const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(common::ToGrpcStatus(status));
  return reactor;
}

absl::StatusOr<ModelInfo> ServedModel(const RouterContext& router, const std::string& wanted) {
  std::optional<ModelInfo> model = router.registry->model();
  if (!model.has_value()) {
    return common::WithRetryDelay(
        absl::UnavailableError("no_capacity: no worker has registered yet"), absl::Seconds(1));
  }
  if (!wanted.empty() && wanted != model->name) {
    return absl::NotFoundError(StrCat("model: served is \"", model->name, "\""));
  }
  return *std::move(model);
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* RouterService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return ActiveRequest::Start(router_, context, request);
}

grpc::ServerUnaryReactor* RouterService::Tokenize(grpc::CallbackServerContext* context,
                                                  const v1::TokenizeRequest* request,
                                                  v1::TokenizeResponse* response) {
  const absl::StatusOr<ModelInfo> model = ServedModel(*router_, request->model());
  if (!model.ok()) return FinishWith(context, model.status());
  if (absl::Status status = ValidateTokenize(*request, *model, router_->limits); !status.ok()) {
    return FinishWith(context, status);
  }
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  // A unary call keeps request and response until its reactor is finished, even when cancelled.
  const auto work = [this, request, response, reactor, max = size_t{1} << 24] {
    auto ids = request->has_chat() ? router_->text->TokenizeChat(request->chat(), max)
                                   : router_->text->TokenizeText(request->text(), max);
    if (ids.ok()) response->mutable_token_ids()->Add(ids->begin(), ids->end());
    reactor->Finish(common::ToGrpcStatus(ids.status()));
  };
  if (static_cast<int64_t>(request->ByteSizeLong()) <= router_->inline_text_bytes) {
    work();
  } else if (!router_->text_pool->Run(work)) {
    reactor->Finish(common::ToGrpcStatus(common::WithRetryDelay(
        absl::ResourceExhaustedError("overloaded: too many texts wait to be tokenized"),
        absl::Seconds(1))));
  }
  return reactor;
}

grpc::ServerUnaryReactor* RouterService::Detokenize(grpc::CallbackServerContext* context,
                                                    const v1::DetokenizeRequest* request,
                                                    v1::DetokenizeResponse* response) {
  const absl::StatusOr<ModelInfo> model = ServedModel(*router_, request->model());
  if (!model.ok()) return FinishWith(context, model.status());
  const tokenizer::Tokenizer* const tokenizer = router_->text->tokenizer();
  if (tokenizer == nullptr) {
    return FinishWith(
        context, absl::FailedPreconditionError("token_ids: the served model has no tokenizer"));
  }
  for (int i = 0; i < request->token_ids_size(); ++i) {
    const int32_t id = request->token_ids(i);
    if (id >= 0 && id < model->vocab_size) continue;
    return FinishWith(context, common::BadRequestError(
                                   {{StrCat("token_ids[", i, "]"),
                                     StrCat("must be a token id in [0, ", model->vocab_size,
                                                    "); got ", id)}}));
  }
  response->set_text(tokenizer->Decode(
      {request->token_ids().data(), static_cast<size_t>(request->token_ids_size())},
      !request->keep_special_tokens()));
  return FinishWith(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* RouterService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest* request,
                                                  v1::GetModelResponse* response) {
  const absl::StatusOr<ModelInfo> model = ServedModel(*router_, request->model());
  if (!model.ok()) return FinishWith(context, model.status());
  response->set_name(model->name);
  response->set_vocab_size(model->vocab_size);
  response->set_max_context_tokens(model->max_context_tokens);
  response->set_kv_bytes_per_token(model->kv_bytes_per_block / kTokensPerBlock);
  response->set_full_attention_bytes_per_token(model->full_attention_bytes_per_block /
                                               kTokensPerBlock);
  response->set_slab_bytes(model->slab_bytes);
  for (const auto& worker : router_->registry->stats(absl::Now()).workers) {
    const bool prefill = worker.role != v1::WORKER_ROLE_DECODE;
    const bool decode = worker.role != v1::WORKER_ROLE_PREFILL;
    response->set_prefill_workers(response->prefill_workers() + (prefill ? 1 : 0));
    response->set_decode_workers(response->decode_workers() + (decode ? 1 : 0));
  }
  return FinishWith(context, absl::OkStatus());
}

}  // namespace hyserve::router
