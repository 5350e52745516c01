// Checks of a public request. Pure and thread-safe; every violated rule is reported at once.
#ifndef HYSERVE_SERVICES_ROUTER_REQUEST_VALIDATOR_H_
#define HYSERVE_SERVICES_ROUTER_REQUEST_VALIDATOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/sampling/sampling_params.h"
#include "hyserve/v1/inference.pb.h"
#include "services/common/config.h"
#include "services/router/model_info.h"

namespace hyserve::router {

// A request whose values are all in range, with defaults filled in. The prompt stays in the
// request.
struct ValidatedRequest {
  std::string request_id;           // empty: to be made
  sampling::SamplingParams sampling;  // max_tokens: see ResolveLength
  bool has_max_tokens = false;
  bool has_seed = false;
  std::vector<std::string> stop;
  bool include_stop = false;
  int32_t prompt_logprobs = -1;
  bool keep_special_tokens = false;
  bool report_progress = false;
  std::string cache_scope;
  bool use_prefix_cache = true;
};

// INVALID_ARGUMENT (a google.rpc.BadRequest lists the fields) or NOT_FOUND (another model).
absl::StatusOr<ValidatedRequest> ValidateRequest(const v1::GenerateRequest& request,
                                                 const ModelInfo& model,
                                                 const common::LimitSettings& limits);

// Fills in max_tokens and checks it against the context, once the prompt's length is known.
absl::Status ResolveLength(int64_t prompt_tokens, const ModelInfo& model,
                           const common::LimitSettings& limits, ValidatedRequest* request);

// INVALID_ARGUMENT or NOT_FOUND for the text or chat of a Tokenize call.
absl::Status ValidateTokenize(const v1::TokenizeRequest& request, const ModelInfo& model,
                              const common::LimitSettings& limits);

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_REQUEST_VALIDATOR_H_
