#include "engine/kernels/cuda/expert_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/kernels/cuda/packed_matrix.h"

namespace hyserve::kernels::cuda {
namespace {

const CudaPackedMatrix& Matrix(const PackedMatrix* matrix) {
  return static_cast<const CudaPackedMatrix&>(*matrix);
}

}  // namespace

bool ExpertTableCache::IsCurrent(std::span<const std::unique_ptr<PackedMatrix>> experts) {
  const auto same = [](const PackedMatrix* member, const std::unique_ptr<PackedMatrix>& expert) {
    return member == expert.get();
  };
  if (!std::equal(members_.begin(), members_.end(), experts.begin(), experts.end(), same)) {
    return false;
  }
  const uint64_t num_destroyed = CudaPackedMatrix::NumDestroyed();
  if (num_destroyed == num_destroyed_) return true;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (Matrix(members_[i]).id() != ids_[i]) return false;
  }
  num_destroyed_ = num_destroyed;
  return true;
}

absl::StatusOr<ExpertMatrices> ExpertTableCache::Get(
    tensor::CudaDevice& device, std::span<const std::unique_ptr<PackedMatrix>> experts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (IsCurrent(experts)) return matrices_;

  members_.clear();
  const size_t count = experts.size();
  std::vector<std::byte> host(count * (sizeof(CUtensorMap) + sizeof(void*)));
  std::vector<uint64_t> ids;
  const uint64_t num_destroyed = CudaPackedMatrix::NumDestroyed();
  for (size_t i = 0; i < count; ++i) {
    const CudaPackedMatrix& matrix = Matrix(experts[i].get());
    ids.push_back(matrix.id());
    std::memcpy(host.data() + i * sizeof(CUtensorMap), &matrix.map(), sizeof(CUtensorMap));
    const void* const address = matrix.data();
    std::memcpy(host.data() + count * sizeof(CUtensorMap) + i * sizeof(void*), &address,
                sizeof(void*));
  }
  absl::StatusOr<tensor::Buffer> memory = device.Allocate(host.size());
  if (!memory.ok()) return memory.status();
  if (absl::Status status = device.CopyToDevice(memory->data(), host.data(), host.size());
      !status.ok()) {
    return status;
  }
  memory_ = *std::move(memory);
  auto* const bytes = static_cast<std::byte*>(memory_.data());
  matrices_.maps = reinterpret_cast<const CUtensorMap*>(bytes);
  matrices_.weights = reinterpret_cast<const void* const*>(bytes + count * sizeof(CUtensorMap));
  matrices_.weight_stride = Matrix(experts[0].get()).row_stride();
  ids_ = std::move(ids);
  num_destroyed_ = num_destroyed;
  for (const std::unique_ptr<PackedMatrix>& expert : experts) members_.push_back(expert.get());
  return matrices_;
}

}  // namespace hyserve::kernels::cuda
