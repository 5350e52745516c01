// Looks for NaN and infinity among weights.
#ifndef HYSERVE_ENGINE_MODEL_FINITE_H_
#define HYSERVE_ENGINE_MODEL_FINITE_H_

#include <cstdint>

#include "engine/tensor/tensor.h"

namespace hyserve::model {

// How many of `count` elements (kF32, kBF16 or kF16) are NaN or infinite. `data` is aligned to
// them.
int64_t CountNotFinite(const void* data, int64_t count, tensor::DType dtype);

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_FINITE_H_
