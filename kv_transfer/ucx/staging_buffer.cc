#include "kv_transfer/ucx/staging_buffer.h"

#include "absl/strings/str_cat.h"

namespace hyserve::kv_transfer {
namespace {
constexpr size_t kAlignment = 4096;
}

absl::Status StagingBuffer::Reserve() {
  if (memory_ != nullptr) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<char>> memory = allocate_(capacity_bytes_);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  return absl::OkStatus();
}

absl::StatusOr<char*> StagingBuffer::Take(size_t bytes) {
  if (bytes > capacity_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a message of ", bytes, " bytes does not fit the staging memory of ", capacity_bytes_));
  }
  const absl::Status reserved = Reserve();
  if (!reserved.ok()) return reserved;
  size_t offset = 0;
  auto next = taken_.begin();
  for (; next != taken_.end(); ++next) {
    if (next->first >= offset + bytes) break;
    const size_t end = next->first + next->second;
    offset = (end + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (next == taken_.end() && (offset > capacity_bytes_ || bytes > capacity_bytes_ - offset)) {
    return nullptr;
  }
  taken_.emplace_hint(next, offset, bytes);
  return memory_.get() + offset;
}

void StagingBuffer::Give(char* data) { taken_.erase(static_cast<size_t>(data - memory_.get())); }

}  // namespace hyserve::kv_transfer
