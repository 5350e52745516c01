#include "engine/model/finite.h"

namespace hyserve::model {
namespace {

// NaN and infinity are the values whose exponent is all ones.
template <typename Bits>
int64_t Count(const void* data, int64_t count, Bits exponent) {
  const Bits* const values = static_cast<const Bits*>(data);
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) found += (values[i] & exponent) == exponent ? 1 : 0;
  return found;
}

}  // namespace

int64_t CountNotFinite(const void* data, int64_t count, tensor::DType dtype) {
  switch (dtype) {
    case tensor::DType::kF32: return Count<uint32_t>(data, count, 0x7f800000u);
    case tensor::DType::kBF16: return Count<uint16_t>(data, count, 0x7f80u);
    case tensor::DType::kF16: return Count<uint16_t>(data, count, 0x7c00u);
    case tensor::DType::kI32: break;
  }
  return 0;
}

}  // namespace hyserve::model
