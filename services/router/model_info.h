// What the router serves, as its workers describe it. Plain data.
#ifndef HYSERVE_SERVICES_ROUTER_MODEL_INFO_H_
#define HYSERVE_SERVICES_ROUTER_MODEL_INFO_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hyserve::router {

inline constexpr int32_t kTokensPerBlock = 64;

struct ModelInfo {
  std::string name;
  int32_t vocab_size = 0;
  int32_t max_context_tokens = 0;
  std::vector<int32_t> eos_token_ids;
  int64_t kv_bytes_per_block = 0;
  int64_t full_attention_bytes_per_block = 0;
  int64_t slab_bytes = 0;
  int64_t selection_bytes = 0;
};

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_MODEL_INFO_H_
