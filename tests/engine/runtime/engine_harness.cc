#include "tests/engine/runtime/engine_harness.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "absl/time/clock.h"

namespace hyserve::runtime {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);

// Copies blocks [first, last) of one layer.
void CopyBlocks(const Engine& from, const KvBlocks& source, const Engine& to,
                const KvBlocks& target, int slot, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    std::memcpy(to.kv_pool().Slice(slot, target.blocks[block]),
                from.kv_pool().Slice(slot, source.blocks[block]), from.layout().slice_bytes());
  }
}

}  // namespace

std::vector<int32_t> Record::TokenIds() const {
  std::vector<int32_t> ids;
  for (const auto& token : tokens) ids.push_back(token.token_id);
  return ids;
}

Record RecordingSink::Await(const std::function<bool(const Record&)>& condition) {
  absl::MutexLock lock(&mutex_);
  auto holds = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return condition(record_); };
  EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&holds), kPatience));
  return record_;
}

Record RecordingSink::AwaitEnd() {
  return Await([](const Record& record) { return record.ends > 0; });
}
Record RecordingSink::AwaitReserved() {
  return Await([](const Record& record) {
    return record.kv.has_value() || !record.reserve_status.ok();
  });
}
Record RecordingSink::Now() {
  absl::MutexLock lock(&mutex_);
  return record_;
}

void RecordingSink::OnAdmitted(const KvBlocks& kv, int32_t cached_tokens) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("admitted");
  record_.kv = kv;
  record_.cached_tokens = cached_tokens;
}
void RecordingSink::OnReserved(const absl::StatusOr<KvBlocks>& kv) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("reserved");
  if (kv.ok()) {
    record_.kv = *kv;
  } else {
    record_.reserve_status = kv.status();
  }
}
void RecordingSink::OnLayerReady(int layer_slot, int32_t num_tokens) {
  if (on_layer_ready) on_layer_ready(layer_slot, num_tokens);
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("layer");
  record_.layers_ready.emplace_back(layer_slot, num_tokens);
}
void RecordingSink::OnPrefillProgress(int32_t computed_tokens) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("progress");
  EXPECT_GT(computed_tokens, record_.progress);
  record_.progress = computed_tokens;
}
void RecordingSink::OnPromptLogprobs(int32_t first_index,
                                     std::vector<sampling::SampledToken> logprobs) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("logprobs");
  for (auto& token : logprobs) {
    record_.logprob_indices.push_back(first_index++);
    record_.prompt_logprobs.push_back(std::move(token));
  }
}
void RecordingSink::OnPrefillDone(std::vector<int32_t> selection) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("done");
  record_.selection = std::move(selection);
}
void RecordingSink::OnTokens(int32_t first_index,
                             const std::vector<sampling::SampledToken>& tokens) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("tokens");
  for (const auto& token : tokens) {
    record_.token_indices.push_back(first_index++);
    record_.tokens.push_back(token);
  }
}
void RecordingSink::OnFinished(const absl::Status& status, sampling::FinishReason reason,
                               const Usage& usage) {
  absl::MutexLock lock(&mutex_);
  record_.calls.push_back("finished");
  ++record_.ends;
  record_.status = status;
  record_.reason = reason;
  record_.usage = usage;
}

std::vector<int32_t> Prompt(int length, uint32_t seed, int32_t vocab) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(length);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

SequenceRequest Request(SequenceId id, SequenceMode mode, std::vector<int32_t> prompt,
                        sampling::SamplingParams sampling) {
  SequenceRequest request;
  request.id = id;
  request.mode = mode;
  request.prompt = std::move(prompt);
  request.sampling = std::move(sampling);
  return request;
}

Record RunLocal(Engine& engine, SequenceRequest request) {
  auto sink = std::make_shared<RecordingSink>();
  request.mode = SequenceMode::kLocal;
  EXPECT_EQ(engine.Submit(std::move(request), sink), absl::OkStatus());
  return sink->AwaitEnd();
}

Record RunHandoff(Engine& prefill, Engine& decode, SequenceRequest request, Pull pull) {
  const SequenceId id = request.id;
  auto decode_sink = std::make_shared<RecordingSink>();
  request.mode = SequenceMode::kDecode;
  EXPECT_EQ(decode.Reserve(request, decode_sink), absl::OkStatus());
  const Record reserved = decode_sink->AwaitReserved();
  EXPECT_EQ(reserved.reserve_status, absl::OkStatus());
  const KvBlocks target = reserved.kv.value();

  auto prefill_sink = std::make_shared<RecordingSink>();
  request.mode = SequenceMode::kPrefill;
  const int32_t prompt_tokens = static_cast<int32_t>(request.prompt.size());
  const int64_t num_blocks = kv_cache::KvLayout::NumBlocks(prompt_tokens);
  const int num_slots = static_cast<int>(prefill.layout().full_layers.size());
  std::vector<int64_t> pulled(num_slots, 0);
  if (pull == Pull::kPerLayer) {
    RecordingSink* sink = prefill_sink.get();  // outlived by the callback's caller
    prefill_sink->on_layer_ready = [&, sink](int slot, int32_t num_tokens) {
      const Record now = sink->Now();
      const int64_t final_blocks =
          num_tokens == prompt_tokens ? num_blocks : num_tokens / kv_cache::kTokensPerBlock;
      CopyBlocks(prefill, *now.kv, decode, target, slot, pulled[slot], final_blocks);
      pulled[slot] = final_blocks;
    };
  }
  EXPECT_EQ(prefill.Submit(std::move(request), prefill_sink), absl::OkStatus());
  const Record first = prefill_sink->AwaitEnd();
  EXPECT_EQ(first.status, absl::OkStatus());
  EXPECT_EQ(first.token_indices, std::vector<int32_t>{0});
  if (pull == Pull::kAtTheEnd) {
    for (int slot = 0; slot < num_slots; ++slot) {
      CopyBlocks(prefill, *first.kv, decode, target, slot, 0, num_blocks);
    }
  } else {
    EXPECT_EQ(pulled, std::vector<int64_t>(num_slots, num_blocks));
  }
  if (prefill.layout().slab_bytes > 0) {
    std::memcpy(decode.kv_pool().Slab(target.slab), prefill.kv_pool().Slab(first.kv->slab),
                prefill.layout().slab_bytes);
  }
  prefill.Release(id);
  decode.Resume(id, first.tokens.at(0).token_id);
  Record result = decode_sink->AwaitEnd();
  result.tokens.insert(result.tokens.begin(), first.tokens.at(0));
  result.token_indices.insert(result.token_indices.begin(), 0);
  result.usage.cached_tokens = first.usage.cached_tokens;
  result.selection = first.selection;
  return result;
}

void AwaitAllFree(const Engine& engine) {
  const absl::Time patience = absl::Now() + kPatience;
  auto all_free = [&] {
    const EngineLoad load = engine.load();
    return load.blocks_used == 0 && load.slabs_used == 0 && load.waiting_sequences == 0 &&
           load.running_sequences == 0;
  };
  while (!all_free() && absl::Now() < patience) std::this_thread::yield();
  const EngineLoad load = engine.load();
  EXPECT_EQ(load.blocks_used, 0);
  EXPECT_EQ(load.slabs_used, 0);
  EXPECT_EQ(load.blocks_free + load.blocks_cached, load.blocks_total);
  EXPECT_EQ(load.slabs_free + load.slabs_cached, load.slabs_total);
}

}  // namespace hyserve::runtime
