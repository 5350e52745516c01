// An open-loop load generator for a HyServe router: arrival times are drawn before the run and
// every latency counts from the scheduled time, so a slow server cannot hide behind a waiting
// client.
#ifndef HYSERVE_BENCHMARKS_SERVING_LOAD_CLIENT_H_
#define HYSERVE_BENCHMARKS_SERVING_LOAD_CLIENT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace hyserve::benchmarks {

struct LoadSpec {
  std::string server = "127.0.0.1:8470";
  int num_requests = 100;
  double requests_per_second = 0;  // Poisson arrivals; 0: closed loop of `concurrency` clients
  int concurrency = 1;             // closed loop only
  int prompt_tokens = 128;
  int shared_prefix_tokens = 0;  // the first tokens are the same in every prompt
  int max_tokens = 16;
  double temperature = 0;
  double top_p = 1;
  int vocab_size = 0;  // token ids are drawn from [0, vocab_size)
  uint64_t seed = 1;
  int channels = 1;
  double timeout_seconds = 600;
};

struct RequestResult {
  double scheduled = 0;  // seconds since the start of the run
  double send_slip = 0;  // sent later than scheduled by this
  double ttft = -1;      // seconds from `scheduled` to token 1; -1: none came
  double end = 0;        // seconds from `scheduled` to the end of the call
  std::vector<double> inter_token;  // seconds between token messages
  int generated_tokens = 0;
  uint64_t output_digest = 14695981039346656037u;  // FNV-1a over the generated token ids
  uint64_t shipped_bytes = 0;
  double transfer_exposed_ms = 0;
  int status = 0;  // gRPC code
};

struct LoadResult {
  std::vector<RequestResult> requests;
  double seconds = 0;      // first scheduled to last end
  double client_cpu = 0;   // CPU seconds of this process during the run
};

LoadResult RunLoad(const LoadSpec& spec);

// Value at quantile q in [0, 1] of unsorted values; 0 if there are none.
double Quantile(std::vector<double> values, double q);

// One JSON object with the fields of `vllm bench serve` results, so that comparing tools can read
// it, plus hyserve_* fields.
std::string ToJson(const LoadSpec& spec, const LoadResult& result);

}  // namespace hyserve::benchmarks

#endif  // HYSERVE_BENCHMARKS_SERVING_LOAD_CLIENT_H_
