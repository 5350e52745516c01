// Any bytes as a GenerateRequest: the validator must end, must not touch what is not there, and
// what it lets through must be in range.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "engine/tokenizer/utf8.h"
#include "hyserve/v1/inference.pb.h"
#include "services/common/status_mapping.h"
#include "services/router/request_validator.h"

namespace {

void Check(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hyserve;  // NOLINT: a program of its own
  v1::GenerateRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  router::ModelInfo model;
  model.name = "m";
  model.vocab_size = 1000;
  model.max_context_tokens = 4096;
  const common::LimitSettings limits;
  auto validated = router::ValidateRequest(request, model, limits);
  if (!validated.ok()) {
    // A refusal names at least one field, or says that the model is another one.
    Check(absl::IsNotFound(validated.status()) ||
          !common::FieldViolations(validated.status()).empty());
    Check(!common::ToGrpcStatus(validated.status()).ok());
    return 0;
  }
  const auto& sampling = validated->sampling;
  Check(sampling.temperature >= 0 && sampling.temperature <= 2);
  Check(sampling.top_p > 0 && sampling.top_p <= 1);
  Check(sampling.min_p >= 0 && sampling.min_p <= 1 && sampling.top_k >= 0);
  Check(std::abs(sampling.frequency_penalty) <= 2 && std::abs(sampling.presence_penalty) <= 2);
  Check(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 2);
  Check(sampling.num_logprobs >= -1 && sampling.num_logprobs <= limits.logprobs);
  for (const auto& [id, bias] : sampling.logit_bias) {
    Check(id >= 0 && id < model.vocab_size && std::abs(bias) <= 100);
  }
  for (const int32_t id : sampling.stop_token_ids) Check(id >= 0 && id < model.vocab_size);
  for (const std::string& stop : validated->stop) Check(tokenizer::IsValidUtf8(stop));
  for (const int32_t id : request.token_ids().ids()) Check(id >= 0 && id < model.vocab_size);
  if (router::ResolveLength(request.token_ids().ids_size(), model, limits, &*validated).ok()) {
    Check(sampling.max_tokens >= 1 && sampling.min_tokens <= sampling.max_tokens);
    Check(request.token_ids().ids_size() + sampling.max_tokens <= model.max_context_tokens);
  }
  return 0;
}
