// Every metric of HyServe: name, kind, labels, roles, buckets, help. One table, no metric
// elsewhere.
//
// The `vllm:` set has the names and bucket borders that existing dashboards and pickers read; where
// a HyServe model is faster than those borders can show, borders are added, never taken away, so
// histogram_quantile() stays valid. Own metrics: prefix hyserve_, base units, _total on counters.
#ifndef HYSERVE_SERVICES_COMMON_METRIC_TABLE_H_
#define HYSERVE_SERVICES_COMMON_METRIC_TABLE_H_

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

namespace hyserve::common {

enum class MetricKind : uint8_t { kCounter, kGauge, kHistogram };

// Roles that have a metric, as bits.
enum MetricRole : uint8_t {
  kRouterRole = 1,
  kPrefillRole = 2,
  kDecodeRole = 4,
  kMonolithicRole = 8,
  kComputeRoles = kPrefillRole | kMonolithicRole,             // compute prompts
  kGenerateRoles = kDecodeRole | kMonolithicRole,             // generate tokens
  kTransferRoles = kPrefillRole | kDecodeRole,
  kWorkerRoles = kPrefillRole | kDecodeRole | kMonolithicRole,
  kAllRoles = kRouterRole | kWorkerRoles,
};

struct MetricSpec {
  std::string_view name;
  MetricKind kind;
  uint8_t roles;  // MetricRole bits
  std::string_view help;
  std::span<const std::string_view> labels = {};  // own labels, beside model_name, engine, role
  std::span<const double> buckets = {};           // upper borders, ascending
};

namespace buckets {
inline constexpr double kTimeToFirstToken[] = {
    .001, .002, .003, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560};
inline constexpr double kInterToken[] = {.0005, .001, .002, .003, .004, .005, .0075, .01, .025,
                                         .05,   .075, .1,   .15,  .2,   .3,   .4,    .5,  .75,
                                         1,     2.5,  5,    7.5,  10,   20,   40,    80};
inline constexpr double kRequestPhase[] = {.01, .05, .1, .2, .3,  .5,  .8,  1,   1.5,  2,    2.5, 5,
                                           10,  15,  20, 30, 40,  50,  60,  120, 240,  480,  960,
                                           1920, 7680};
inline constexpr double kTokens[] = {1,     2,      5,      10,     20,     50,    100,
                                     200,   500,    1000,   2000,   5000,   10000, 20000,
                                     50000, 100000, 200000, 500000, 1000000};
inline constexpr double kIterationTokens[] = {1,   8,   16,  32,   64,   128,  256,
                                              512, 1024, 2048, 4096, 8192, 16384};
inline constexpr double kTransfer[] = {.0005, .001, .0025, .005, .01, .025, .05, .075,
                                       .1,    .2,   .3,    .5,   .75, 1,    2.5, 5, 10};
inline constexpr double kStep[] = {.0001, .00025, .0005, .001, .0025, .005, .01, .025,
                                   .05,   .1,     .25,   .5,   1,     2.5,  5,   10};
inline constexpr double kDecision[] = {.00001, .000025, .00005, .0001, .00025, .0005, .001,
                                       .0025,  .005,    .01,    .05,   .1};
}  // namespace buckets

namespace labels {
inline constexpr std::string_view kFinishedReason[] = {"finished_reason"};
inline constexpr std::string_view kCacheConfig[] = {"block_size", "num_gpu_blocks"};
inline constexpr std::string_view kRequests[] = {"code", "reason"};
inline constexpr std::string_view kReason[] = {"reason"};
inline constexpr std::string_view kPhase[] = {"phase"};
inline constexpr std::string_view kState[] = {"state"};
inline constexpr std::string_view kWorker[] = {"worker"};
inline constexpr std::string_view kPair[] = {"pair"};
inline constexpr std::string_view kTransfer[] = {"direction", "transport", "kind"};
inline constexpr std::string_view kDirection[] = {"direction"};
inline constexpr std::string_view kDirectionPath[] = {"direction", "path"};
inline constexpr std::string_view kModelInfo[] = {"digest", "layout"};
inline constexpr std::string_view kBuildInfo[] = {"version"};
inline constexpr std::string_view kWorkerRole[] = {"worker_role"};
}  // namespace labels

// Every spec. Adding one here is all it takes; metric_table_test checks the rules.
namespace metric {
using K = MetricKind;

// ---- the vllm: set -----------------------------------------------------------------------------
inline constexpr MetricSpec kNumRequestsRunning{
    "vllm:num_requests_running", K::kGauge, kAllRoles, "Requests that are being computed."};
inline constexpr MetricSpec kNumRequestsWaiting{
    "vllm:num_requests_waiting", K::kGauge, kAllRoles, "Requests that wait to be computed."};
inline constexpr MetricSpec kKvCacheUsage{
    "vllm:kv_cache_usage_perc", K::kGauge, kWorkerRoles, "Used part of the KV blocks, 0 to 1."};
inline constexpr MetricSpec kCacheConfigInfo{
    "vllm:cache_config_info", K::kGauge, kWorkerRoles, "Tokens per block and number of blocks.",
    labels::kCacheConfig};
inline constexpr MetricSpec kPromptTokens{
    "vllm:prompt_tokens_total", K::kCounter, kAllRoles, "Prompt tokens of started requests."};
inline constexpr MetricSpec kGenerationTokens{
    "vllm:generation_tokens_total", K::kCounter, kAllRoles, "Generated tokens."};
inline constexpr MetricSpec kRequestSuccess{
    "vllm:request_success_total", K::kCounter, kAllRoles, "Requests that ended well.",
    labels::kFinishedReason};
inline constexpr MetricSpec kNumPreemptions{
    "vllm:num_preemptions_total", K::kCounter, kWorkerRoles, "Sequences put back to waiting."};
inline constexpr MetricSpec kPrefixCacheQueries{
    "vllm:prefix_cache_queries_total", K::kCounter, kComputeRoles,
    "Prompt tokens looked up in the prefix cache."};
inline constexpr MetricSpec kPrefixCacheHits{
    "vllm:prefix_cache_hits_total", K::kCounter, kComputeRoles,
    "Prompt tokens restored from the prefix cache."};
inline constexpr MetricSpec kTimeToFirstToken{
    "vllm:time_to_first_token_seconds", K::kHistogram, kRouterRole | kComputeRoles,
    "Arrival to the first token.", {}, buckets::kTimeToFirstToken};
inline constexpr MetricSpec kInterTokenLatency{
    "vllm:inter_token_latency_seconds", K::kHistogram, kRouterRole | kGenerateRoles,
    "Time between two tokens of a request.", {}, buckets::kInterToken};
inline constexpr MetricSpec kTimePerOutputToken{
    "vllm:request_time_per_output_token_seconds", K::kHistogram, kRouterRole | kGenerateRoles,
    "Mean time per token after the first, per request.", {}, buckets::kInterToken};
inline constexpr MetricSpec kE2eLatency{
    "vllm:e2e_request_latency_seconds", K::kHistogram, kAllRoles, "Arrival to the end.", {},
    buckets::kRequestPhase};
inline constexpr MetricSpec kRequestQueueTime{
    "vllm:request_queue_time_seconds", K::kHistogram, kAllRoles, "Time in the queue.", {},
    buckets::kRequestPhase};
inline constexpr MetricSpec kRequestPrefillTime{
    "vllm:request_prefill_time_seconds", K::kHistogram, kRouterRole | kComputeRoles,
    "Start of the prompt's computation to the first token.", {}, buckets::kRequestPhase};
inline constexpr MetricSpec kRequestDecodeTime{
    "vllm:request_decode_time_seconds", K::kHistogram, kRouterRole | kGenerateRoles,
    "First to last token.", {}, buckets::kRequestPhase};
inline constexpr MetricSpec kRequestInferenceTime{
    "vllm:request_inference_time_seconds", K::kHistogram, kAllRoles,
    "Start of the prompt's computation to the last token.", {}, buckets::kRequestPhase};
inline constexpr MetricSpec kIterationTokens{
    "vllm:iteration_tokens_total", K::kHistogram, kWorkerRoles, "Tokens per forward pass.", {},
    buckets::kIterationTokens};
inline constexpr MetricSpec kRequestPromptTokens{
    "vllm:request_prompt_tokens", K::kHistogram, kAllRoles, "Prompt tokens per request.", {},
    buckets::kTokens};
inline constexpr MetricSpec kRequestGenerationTokens{
    "vllm:request_generation_tokens", K::kHistogram, kAllRoles, "Generated tokens per request.", {},
    buckets::kTokens};

// ---- every process -----------------------------------------------------------------------------
inline constexpr MetricSpec kRequests{
    "hyserve_requests_total", K::kCounter, kAllRoles, "Ended requests by status code and reason.",
    labels::kRequests};
inline constexpr MetricSpec kRejected{
    "hyserve_rejected_total", K::kCounter, kAllRoles, "Requests refused before any work.",
    labels::kReason};
inline constexpr MetricSpec kQueueRequests{
    "hyserve_queue_requests", K::kGauge, kAllRoles, "Requests in the process's own queue."};
inline constexpr MetricSpec kQueueTokens{
    "hyserve_queue_tokens", K::kGauge, kAllRoles, "Prompt tokens of the requests in the queue."};
inline constexpr MetricSpec kModelInfo{
    "hyserve_model_info", K::kGauge, kWorkerRoles, "1; what is served.", labels::kModelInfo};
inline constexpr MetricSpec kBuildInfo{
    "hyserve_build_info", K::kGauge, kAllRoles, "1; the version.", labels::kBuildInfo};
inline constexpr MetricSpec kSlowConsumers{
    "hyserve_slow_consumers_total", K::kCounter, kAllRoles,
    "Streams ended because nobody read them."};

// ---- router ------------------------------------------------------------------------------------
inline constexpr MetricSpec kRouterRequests{
    "hyserve_router_requests_total", K::kCounter, kRouterRole, "Requests that arrived."};
inline constexpr MetricSpec kRouterQueueTime{
    "hyserve_router_queue_seconds", K::kHistogram, kRouterRole, "Admission to dispatch.", {},
    buckets::kRequestPhase};
inline constexpr MetricSpec kRouterDecisionTime{
    "hyserve_router_decision_seconds", K::kHistogram, kRouterRole, "Time to pick the workers.", {},
    buckets::kDecision};
inline constexpr MetricSpec kRouterWorkerInflight{
    "hyserve_router_worker_inflight", K::kGauge, kRouterRole, "Requests at a worker.",
    labels::kWorker};
inline constexpr MetricSpec kRouterWorkers{
    "hyserve_router_workers", K::kGauge, kRouterRole, "Registered workers by role.",
    labels::kWorkerRole};
inline constexpr MetricSpec kRouterPrefixHitTokens{
    "hyserve_router_prefix_hit_tokens_total", K::kCounter, kRouterRole,
    "Prompt tokens that the chosen worker was expected to have cached."};
inline constexpr MetricSpec kRouterRetries{
    "hyserve_router_retry_total", K::kCounter, kRouterRole, "Attempts after the first."};
inline constexpr MetricSpec kRouterShed{
    "hyserve_router_shed_total", K::kCounter, kRouterRole, "Requests refused for overload.",
    labels::kReason};
inline constexpr MetricSpec kRetryAttempts{
    "hyserve_retry_attempts_total", K::kCounter, kRouterRole,
    "Attempts after the first, by the phase that failed.", labels::kPhase};
inline constexpr MetricSpec kStaleEpoch{
    "hyserve_kv_stale_epoch_total", K::kCounter, kAllRoles,
    "Messages of an attempt that is no longer the current one."};
inline constexpr MetricSpec kPairHealth{
    "hyserve_pair_health", K::kGauge, kRouterRole,
    "1: a prefill and decode worker reach each other; 0: not used for a while.", labels::kPair};
inline constexpr MetricSpec kWorkerLost{
    "hyserve_worker_crashes_total", K::kCounter, kRouterRole,
    "Workers whose registration ended without draining."};

// ---- workers -----------------------------------------------------------------------------------
inline constexpr MetricSpec kEngineStepTime{
    "hyserve_engine_step_seconds", K::kHistogram, kWorkerRoles, "Time of a forward pass.", {},
    buckets::kStep};
inline constexpr MetricSpec kEngineLastStep{
    "hyserve_engine_last_step_timestamp", K::kGauge, kWorkerRoles,
    "Unix time of the last forward pass."};
inline constexpr MetricSpec kKvBlocks{
    "hyserve_kv_blocks", K::kGauge, kWorkerRoles, "KV blocks by state.", labels::kState};
inline constexpr MetricSpec kKvBlocksCapacity{
    "hyserve_kv_blocks_capacity", K::kGauge, kWorkerRoles, "All KV blocks."};
inline constexpr MetricSpec kKvTransferTime{
    "hyserve_kv_transfer_seconds",       K::kHistogram,     kTransferRoles,
    "First to last byte of a hand-off.", labels::kTransfer, buckets::kTransfer};
inline constexpr MetricSpec kKvTransferBytes{
    "hyserve_kv_transfer_bytes_total", K::kCounter, kTransferRoles, "Bytes of hand-offs.",
    labels::kTransfer};
inline constexpr MetricSpec kKvPathBytes{
    "hyserve_kv_path_bytes_total", K::kCounter, kTransferRoles,
    "Payload bytes by the way they took: host, direct (device to device) or staged.",
    labels::kDirectionPath};
inline constexpr MetricSpec kKvTransferExposed{
    "hyserve_kv_transfer_exposed_seconds", K::kHistogram, kDecodeRole,
    "What decode waited after the prefill had ended.", {}, buckets::kTransfer};
inline constexpr MetricSpec kKvFullAttentionBytes{
    "hyserve_kv_full_attention_bytes_total", K::kCounter, kTransferRoles,
    "Bytes that the same hand-offs would have had with full attention in every layer."};
inline constexpr MetricSpec kKvLinkBytesPerSecond{
    "hyserve_kv_link_bytes_per_second", K::kGauge, kTransferRoles, "Measured link to a peer.",
    labels::kPair};
inline constexpr MetricSpec kKvLeaseExpired{"hyserve_kv_lease_expired_total", K::kCounter,
                                            kPrefillRole, "Offers that nobody took in time."};
inline constexpr MetricSpec kKvTransferFailures{
    "hyserve_kv_transfer_failures_total", K::kCounter, kTransferRoles, "Hand-offs that failed.",
    labels::kReason};
inline constexpr MetricSpec kKvIntegrityFailures{
    "hyserve_kv_integrity_failures_total", K::kCounter, kDecodeRole,
    "Hand-offs whose checksums or lengths were wrong."};
inline constexpr MetricSpec kKvForcedCloses{
    "hyserve_kv_forced_closes_total", K::kCounter, kTransferRoles,
    "Endpoints closed by force to fence memory."};
inline constexpr MetricSpec kQuarantinedPages{
    "hyserve_quarantined_pages", K::kGauge, kTransferRoles,
    "Blocks that a transfer might still touch."};
inline constexpr MetricSpec kRecomputedTokens{
    "hyserve_prompt_tokens_recomputed_total", K::kCounter, kGenerateRoles,
    "Prompt tokens computed again after a hand-off.", labels::kReason};
inline constexpr MetricSpec kHandoffPhase{
    "hyserve_handoff_seconds", K::kHistogram,  kTransferRoles,
    "Phases of a hand-off.",   labels::kPhase, buckets::kTransfer};

inline constexpr const MetricSpec* kAll[] = {
    &kNumRequestsRunning, &kNumRequestsWaiting, &kKvCacheUsage, &kCacheConfigInfo, &kPromptTokens,
    &kGenerationTokens, &kRequestSuccess, &kNumPreemptions, &kPrefixCacheQueries, &kPrefixCacheHits,
    &kTimeToFirstToken, &kInterTokenLatency, &kTimePerOutputToken, &kE2eLatency, &kRequestQueueTime,
    &kRequestPrefillTime, &kRequestDecodeTime, &kRequestInferenceTime, &kIterationTokens,
    &kRequestPromptTokens, &kRequestGenerationTokens, &kRequests, &kRejected, &kQueueRequests,
    &kQueueTokens, &kModelInfo, &kBuildInfo, &kSlowConsumers, &kRouterRequests, &kRouterQueueTime,
    &kRouterDecisionTime, &kRouterWorkerInflight, &kRouterWorkers, &kRouterPrefixHitTokens,
    &kRouterRetries, &kRouterShed, &kRetryAttempts, &kStaleEpoch, &kPairHealth, &kWorkerLost,
    &kEngineStepTime, &kEngineLastStep, &kKvBlocks, &kKvBlocksCapacity, &kKvTransferTime,
    &kKvTransferBytes, &kKvPathBytes, &kKvTransferExposed, &kKvFullAttentionBytes,
    &kKvLinkBytesPerSecond, &kKvLeaseExpired, &kKvTransferFailures, &kKvIntegrityFailures,
    &kKvForcedCloses, &kQuarantinedPages, &kRecomputedTokens, &kHandoffPhase};
}  // namespace metric

inline constexpr std::string_view kHyServeVersion = "0.1.0";

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_METRIC_TABLE_H_
