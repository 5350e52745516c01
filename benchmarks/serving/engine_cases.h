// What hyserve-engine-bench measures: prefill from nothing, and decode at a given depth.
#ifndef HYSERVE_BENCHMARKS_SERVING_ENGINE_CASES_H_
#define HYSERVE_BENCHMARKS_SERVING_ENGINE_CASES_H_

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "engine/runtime/engine.h"
#include "engine/tensor/device.h"

namespace hyserve::benchmarks {

// One random prompt of `depth` tokens, computed `repetitions` times: medians of the time to the
// first token, of the tokens per second of the whole prompt and of its last chunk ("at depth"), and
// of decoding the `decode_tokens` tokens behind it, and the last run's times to powers of two of
// computed tokens. Every random token stands `run_tokens` times in a row: with random weights,
// neighbours that are unlike choose blocks that have nothing in common, which is the worst case of
// sparse layers; runs make them choose alike, as those of real text do.
absl::StatusOr<nlohmann::ordered_json> MeasurePrefill(runtime::Engine& engine, int depth,
                                                      int run_tokens, int decode_tokens,
                                                      int repetitions);

// Decoding of `batch` sequences of `depth` tokens whose cache was filled with random values, as if
// a hand-off had brought it: median time of a step, tokens per second, and the bytes that a step
// has to read per second: once the bf16 weights that one token uses (a batch of a mixture of
// experts reads more), and of every sequence the pages of full layers, the selected blocks and the
// windows. RESOURCE_EXHAUSTED when the pool cannot hold the batch.
absl::StatusOr<nlohmann::ordered_json> MeasureDecode(runtime::Engine& engine, int depth, int batch,
                                                     int decode_tokens);

// Fills the engine's pool with random values of order 1; `device` is a second handle on its device.
absl::Status FillPool(tensor::Device& device, const runtime::Engine& engine);

// Bytes per second read and written by copies within the device's memory: the limit of decode.
absl::StatusOr<double> MeasureCopyBandwidth(tensor::Device& device);

}  // namespace hyserve::benchmarks

#endif  // HYSERVE_BENCHMARKS_SERVING_ENGINE_CASES_H_
