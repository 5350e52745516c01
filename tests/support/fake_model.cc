#include "tests/support/fake_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/kernels/ops.h"

namespace hyserve::testing_support {
namespace {

constexpr int kSlots = 2;   // full layers
constexpr int kWindow = 128;
constexpr size_t kRowBytes = sizeof(uint64_t);  // two f32 of one head

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  hash ^= hash >> 29;
  hash *= 0xbf58476d1ce4e5b9u;
  return hash ^ (hash >> 32);
}

uint64_t LoadWord(const char* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}
void StoreWord(char* at, uint64_t value) { std::memcpy(at, &value, sizeof(value)); }

char* Key(attention::KvPool& pool, int slot, const model::SequenceRows& rows, int32_t position) {
  return pool.Slice(slot, rows.blocks[position / kv_cache::kTokensPerBlock]) +
         position % kv_cache::kTokensPerBlock * kRowBytes;
}
char* Value(attention::KvPool& pool, int slot, const model::SequenceRows& rows, int32_t position) {
  return Key(pool, slot, rows, position) + pool.layout().k_slice_bytes();
}
char* Ring(attention::KvPool& pool, int ring, const model::SequenceRows& rows, int32_t position) {
  return pool.Slab(rows.slab) + pool.layout().rings[ring].k_offset_bytes +
         position % kWindow * kRowBytes;
}

}  // namespace

FakeModel::FakeModel(const FakeModelOptions& options)
    : device_(*tensor::Device::Create({.num_threads = 1})),
      nan_token_id_(options.nan_token_id),
      reserve_(options.reserve) {
  config_.model_type = "fake";
  config_.vocab_size = options.vocab_size;
  config_.max_position_embeddings = options.max_position_embeddings;
  config_.eos_token_ids = {options.eos_token_id};
  layout_.dtype = tensor::DType::kF32;
  layout_.full_layers = {0, 3};
  layout_.num_kv_heads = 1;
  layout_.head_dim = 2;
  layout_.v_head_dim = 2;
  layout_.num_layers = 4;
  layout_.oracle_slots = {0};
  layout_.selected_blocks = 2;
  layout_.model_digest = "fake";
  if (!options.has_window_layers) return;
  layout_.window = kWindow;
  for (int ring = 0; ring < kSlots; ++ring) {
    layout_.rings.push_back({.layer_index = 1 + ring,
                             .num_kv_heads = 1,
                             .head_dim = 2,
                             .v_head_dim = 2,
                             .k_offset_bytes = 2 * ring * kWindow * kRowBytes,
                             .v_offset_bytes = (2 * ring + 1) * kWindow * kRowBytes});
  }
  layout_.slab_bytes = 2 * kSlots * kWindow * kRowBytes;
}

void FakeModel::SetHook(Hook hook) {
  absl::MutexLock lock(&mutex_);
  hook_ = std::move(hook);
}

void FakeModel::ComputeSlot(int slot, const model::SequenceRows& rows,
                            attention::KvPool& pool) const {
  for (size_t r = 0; r < rows.token_ids.size(); ++r) {
    const int32_t position = rows.first_position + static_cast<int32_t>(r);
    uint64_t state = Mix(17 + slot, static_cast<uint64_t>(position));
    if (slot == 0) {
      state = Mix(state, static_cast<uint64_t>(rows.token_ids[r]));
    } else {
      state = Mix(state, LoadWord(Key(pool, slot - 1, rows, position)));
      state = Mix(state, LoadWord(Value(pool, slot - 1, rows, position)));
    }
    for (const int32_t earlier : {position - 1, position / 2, position / 3}) {
      if (earlier >= 0 && earlier < position) {
        state = Mix(state, LoadWord(Key(pool, slot, rows, earlier)));
        state = Mix(state, LoadWord(Value(pool, slot, rows, earlier)));
      }
    }
    if (!layout_.rings.empty()) {
      for (int32_t p = std::max(0, position - kWindow + 1); p < position; ++p) {
        state = Mix(state, LoadWord(Ring(pool, slot, rows, p)));
      }
      StoreWord(Ring(pool, slot, rows, position), Mix(state, 3));
    }
    StoreWord(Key(pool, slot, rows, position), Mix(state, 1));
    StoreWord(Value(pool, slot, rows, position), Mix(state, 2));
  }
}

void FakeModel::AppendLogits(const model::SequenceRows& rows, int32_t position,
                             attention::KvPool& pool, bool nan,
                             std::vector<float>* logits) const {
  uint64_t state = 5;
  for (int slot = 0; slot < kSlots; ++slot) {
    for (int32_t p = 0; p <= position; ++p) {
      state = Mix(state, LoadWord(Key(pool, slot, rows, p)));
      state = Mix(state, LoadWord(Value(pool, slot, rows, p)));
    }
  }
  for (int32_t token = 0; token < config_.vocab_size; ++token) {
    // In [-3, 3): every token has its chance, except the one that spoils the logits.
    const float logit =
        static_cast<float>(Mix(state, static_cast<uint64_t>(token)) >> 40) * 0x1p-24f * 6 - 3;
    logits->push_back(nan ? std::nanf("") : token == nan_token_id_ ? -1000.0f : logit);
  }
}

absl::Status FakeModel::Forward(const model::StepInput& input, attention::KvPool& pool,
                                model::StepOutput* output) {
  Hook hook;
  {
    absl::MutexLock lock(&mutex_);
    hook = hook_;
  }
  if (hook) {
    if (absl::Status status = hook(input); !status.ok()) return status;
  }
  for (int slot = 0; slot < kSlots; ++slot) {
    for (const model::SequenceRows& rows : input.sequences) ComputeSlot(slot, rows, pool);
    if (input.on_layer_kv_ready) input.on_layer_kv_ready(slot);
  }
  using Logits = model::SequenceRows::Logits;
  output->logits.clear();
  output->logit_row_begin.assign(1, 0);
  std::vector<kernels::SampleRow> samples;
  output->selections.assign(input.sequences.size(), {});
  for (size_t s = 0; s < input.sequences.size(); ++s) {
    const model::SequenceRows& rows = input.sequences[s];
    const int32_t count = static_cast<int32_t>(rows.token_ids.size());
    const int32_t last = rows.first_position + count - 1;
    const bool nan = std::find(rows.token_ids.begin(), rows.token_ids.end(), nan_token_id_) !=
                     rows.token_ids.end();
    const int32_t first = rows.logits == Logits::kAll    ? rows.first_position
                          : rows.logits != Logits::kNone ? last
                                                         : last + 1;
    samples.insert(samples.end(), rows.samples.begin(), rows.samples.end());
    for (int32_t p = first; p <= last; ++p) AppendLogits(rows, p, pool, nan, &output->logits);
    output->logit_row_begin.push_back(output->logit_row_begin.back() + last + 1 - first);
    if (rows.want_selection) {
      const int32_t own_block = last / kv_cache::kTokensPerBlock;
      output->selections[s] = {0, own_block > 0 ? own_block : -1};
    }
  }
  output->sampled.resize(samples.size());
  if (samples.empty()) return absl::OkStatus();
  const tensor::TensorView logits = {output->logits.data(), tensor::DType::kF32,
                                     static_cast<int64_t>(samples.size()), config_.vocab_size,
                                     config_.vocab_size};
  const absl::Status status = kernels::SampleTokens(*device_, {.logits = logits,
                                                               .rows = samples.data(),
                                                               .edits = input.edits.data(),
                                                               .out = output->sampled.data()});
  output->logits.clear();
  return status;
}

}  // namespace hyserve::testing_support
