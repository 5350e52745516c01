// Splits a job over the cores of the host while weights are loaded or made. Threads live for one
// call: use it for jobs of milliseconds and more.
#ifndef HYSERVE_ENGINE_MODEL_HOST_PARALLEL_H_
#define HYSERVE_ENGINE_MODEL_HOST_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace hyserve::model {

// Calls body(i) for i in [0, count), each once, in any order and from several threads. Returns the
// error of the lowest i that failed; pieces not yet begun are then left out.
absl::Status ParallelPieces(int64_t count, absl::FunctionRef<absl::Status(int64_t)> body);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_HOST_PARALLEL_H_
