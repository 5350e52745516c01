#include "engine/model/host_stack.h"

#include <algorithm>
#include <cstdint>

#include "base/strings.h"
#include "engine/tensor/convert.h"

namespace hyserve::model {
namespace {

using tensor::DType;
using tensor::TensorView;

void ToFloat(const void* in, DType dtype, int64_t count, float* out) {
  const uint16_t* const half = static_cast<const uint16_t*>(in);
  if (dtype == DType::kBF16) {
    std::transform(half, half + count, out, tensor::Bf16ToFloat);
  } else {
    std::transform(half, half + count, out, tensor::F16ToFloat);
  }
}

absl::Status NoMemory(size_t bytes) {
  return absl::ResourceExhaustedError(
      StrCat("not enough host memory: ", bytes, " bytes to read weights"));
}

}  // namespace

char* HostStack::Memory::Reserve(size_t bytes) {
  if (bytes <= bytes_) return memory_.get();
  const size_t rounded = (bytes + 63) / 64 * 64;
  memory_.reset();  // before the larger one, so that both are never there together
  bytes_ = 0;
  memory_.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
  if (memory_ != nullptr) bytes_ = rounded;
  return memory_.get();
}

std::vector<TensorView> HostStack::Shapes(const TensorSource& source,
                                          const std::vector<const TensorSpec*>& specs,
                                          bool as_f32) {
  DType dtype = as_f32 ? DType::kF32 : source.DTypeOf(*specs[0]);
  for (const TensorSpec* spec : specs) {
    if (source.DTypeOf(*spec) != dtype) dtype = DType::kF32;
  }
  std::vector<TensorView> views;
  for (const TensorSpec* spec : specs) {
    views.push_back({nullptr, dtype, spec->rows(), spec->cols(), spec->cols()});
  }
  return views;
}

absl::StatusOr<std::vector<TensorView>> HostStack::Read(
    TensorSource& source, const std::vector<const TensorSpec*>& specs, bool as_f32) {
  std::vector<TensorView> views = Shapes(source, specs, as_f32);
  const DType dtype = views[0].dtype;
  size_t elements = 0;
  // Every part starts aligned.
  for (const TensorSpec* spec : specs) elements += (spec->num_elements() + 31) / 32 * 32;
  const size_t bytes = elements * tensor::SizeOf(dtype);
  char* cursor = stack_.Reserve(bytes);
  if (cursor == nullptr) return NoMemory(bytes);

  for (size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec* const spec = specs[i];
    const DType stored = source.DTypeOf(*spec);
    const int64_t count = spec->num_elements();
    void* target = cursor;
    if (stored != dtype) {
      target = raw_.Reserve(count * tensor::SizeOf(stored));
      if (target == nullptr) return NoMemory(count * tensor::SizeOf(stored));
    }
    if (absl::Status status = source.Read(*spec, target); !status.ok()) return status;
    if (stored != dtype) ToFloat(target, stored, count, reinterpret_cast<float*>(cursor));
    views[i].data = cursor;
    cursor += (count + 31) / 32 * 32 * tensor::SizeOf(dtype);
  }
  return views;
}

}  // namespace hyserve::model
