#include "benchmarks/serving/load_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "hyserve/v1/inference.grpc.pb.h"

namespace hyserve::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// One step of FNV-1a over a whole value.
void Mix(uint64_t value, uint64_t* digest) { *digest = (*digest ^ value) * 1099511628211u; }

v1::GenerateRequest MakeRequest(const LoadSpec& spec, int index) {
  v1::GenerateRequest request;
  auto* ids = request.mutable_token_ids()->mutable_ids();
  std::mt19937_64 shared(spec.seed);
  std::mt19937_64 own(spec.seed * 1000003 + static_cast<uint64_t>(index) + 1);
  std::uniform_int_distribution<int32_t> token(0, spec.vocab_size - 1);
  for (int i = 0; i < spec.prompt_tokens; ++i) {
    ids->Add(token(i < spec.shared_prefix_tokens ? shared : own));
  }
  request.mutable_sampling()->set_temperature(static_cast<float>(spec.temperature));
  request.mutable_sampling()->set_top_p(static_cast<float>(spec.top_p));
  request.mutable_sampling()->set_seed(spec.seed + static_cast<uint64_t>(index));
  request.mutable_stopping()->set_max_tokens(spec.max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

// Counts calls that run, so that the closed loop can start the next and the end can be waited for.
class Running {
 public:
  void Add() {
    std::lock_guard lock(mutex_);
    ++count_;
  }
  void Remove() {
    std::lock_guard lock(mutex_);
    --count_;
    changed_.notify_all();
  }
  void WaitBelow(int limit) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ < limit; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

class Call : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(v1::Inference::Stub* stub, v1::GenerateRequest request, double timeout_seconds,
       Clock::time_point scheduled, RequestResult* result, Running* running)
      : request_(std::move(request)), scheduled_(scheduled), result_(result), running_(running) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(timeout_seconds * 1e3)));
    result_->send_slip = Seconds(Clock::now() - scheduled_);
    stub->async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const Clock::time_point now = Clock::now();
    if (response_.has_tokens() && response_.tokens().token_ids_size() > 0) {
      if (result_->ttft < 0) {
        result_->ttft = Seconds(now - scheduled_);
      } else {
        const int count = response_.tokens().token_ids_size();
        const double each = Seconds(now - last_token_) / count;
        for (int i = 0; i < count; ++i) result_->inter_token.push_back(each);
      }
      last_token_ = now;
      result_->generated_tokens += response_.tokens().token_ids_size();
      for (const int32_t id : response_.tokens().token_ids()) {
        Mix(static_cast<uint64_t>(id), &result_->output_digest);
      }
    } else if (response_.has_finished()) {
      result_->shipped_bytes = response_.finished().handoff().shipped_bytes();
      result_->transfer_exposed_ms = response_.finished().timings().transfer_exposed_ms();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    result_->status = static_cast<int>(status.error_code());
    result_->end = Seconds(Clock::now() - scheduled_);
    Running* running = running_;
    delete this;
    running->Remove();
  }

 private:
  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  const Clock::time_point scheduled_;
  Clock::time_point last_token_;
  RequestResult* const result_;
  Running* const running_;
};

}  // namespace

LoadResult RunLoad(const LoadSpec& spec) {
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < spec.channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    stubs.push_back(v1::Inference::NewStub(
        grpc::CreateCustomChannel(spec.server, grpc::InsecureChannelCredentials(), arguments)));
  }
  std::vector<v1::GenerateRequest> requests;
  std::vector<double> arrivals(spec.num_requests, 0.0);
  std::mt19937_64 random(spec.seed);
  std::exponential_distribution<double> gap(std::max(spec.requests_per_second, 1e-9));
  for (int i = 0; i < spec.num_requests; ++i) {
    requests.push_back(MakeRequest(spec, i));
    if (spec.requests_per_second > 0) arrivals[i] = (i > 0 ? arrivals[i - 1] : 0) + gap(random);
  }

  LoadResult result;
  result.requests.resize(spec.num_requests);
  Running running;
  const double cpu_before = CpuSeconds();
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < spec.num_requests; ++i) {
    Clock::time_point scheduled;
    if (spec.requests_per_second > 0) {
      scheduled = start + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double>(arrivals[i]));
      std::this_thread::sleep_until(scheduled);
    } else {
      running.WaitBelow(spec.concurrency);
      scheduled = Clock::now();
    }
    result.requests[i].scheduled = Seconds(scheduled - start);
    running.Add();
    new Call(stubs[i % stubs.size()].get(), std::move(requests[i]), spec.timeout_seconds, scheduled,
             &result.requests[i], &running);
  }
  running.WaitBelow(1);
  result.seconds = Seconds(Clock::now() - start);
  result.client_cpu = CpuSeconds() - cpu_before;
  return result;
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const size_t index = std::min(values.size() - 1,
                                static_cast<size_t>(q * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index),
                   values.end());
  return values[index];
}

std::string ToJson(const LoadSpec& spec, const LoadResult& result) {
  std::vector<double> ttft, itl, end, slip, exposed;
  std::map<int, int> codes;
  int64_t generated = 0;
  uint64_t shipped = 0;
  uint64_t digest = 0;
  for (const RequestResult& request : result.requests) {
    ++codes[request.status];
    slip.push_back(1e3 * request.send_slip);
    if (request.status != 0) continue;
    ttft.push_back(1e3 * request.ttft);
    end.push_back(1e3 * request.end);
    exposed.push_back(request.transfer_exposed_ms);
    for (const double gap : request.inter_token) itl.push_back(1e3 * gap);
    generated += request.generated_tokens;
    shipped += request.shipped_bytes;
    Mix(request.output_digest, &digest);
  }
  nlohmann::ordered_json json;
  const int completed = static_cast<int>(ttft.size());
  json["num_prompts"] = spec.num_requests;
  json["completed"] = completed;
  json["request_rate"] = spec.requests_per_second;
  json["max_concurrency"] = spec.concurrency;
  json["duration"] = result.seconds;
  json["total_input_tokens"] = static_cast<int64_t>(completed) * spec.prompt_tokens;
  json["total_output_tokens"] = generated;
  json["request_throughput"] = completed / result.seconds;
  json["output_throughput"] = static_cast<double>(generated) / result.seconds;
  const auto add = [&json](const std::string& name, const std::vector<double>& values) {
    json["median_" + name] = Quantile(values, 0.5);
    json["p90_" + name] = Quantile(values, 0.9);
    json["p99_" + name] = Quantile(values, 0.99);
  };
  add("ttft_ms", ttft);
  add("itl_ms", itl);
  add("e2el_ms", end);
  add("hyserve_transfer_exposed_ms", exposed);
  json["hyserve_shipped_bytes"] = shipped;
  json["hyserve_output_digest"] = digest;  // equal where the same load got the same tokens
  json["hyserve_p99_send_slip_ms"] = Quantile(slip, 0.99);
  json["hyserve_client_cpu_share"] = result.client_cpu / result.seconds;
  for (const auto& [code, count] : codes) {
    json["hyserve_status_codes"][std::to_string(code)] = count;
  }
  return json.dump();
}

}  // namespace hyserve::benchmarks
