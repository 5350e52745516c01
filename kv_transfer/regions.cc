#include "kv_transfer/regions.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kv_transfer/handoff_message.h"

namespace hyserve::kv_transfer {

absl::Status RegisterRegions(Transport& transport, const MemoryRegions& regions) {
  const kv_cache::KvLayout& layout = regions.layout;
  if (regions.blocks == nullptr || regions.num_blocks <= 0 || layout.block_bytes() == 0) {
    return absl::InvalidArgumentError("kv transfer: no block memory");
  }
  size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<size_t>(regions.num_blocks), layout.block_bytes(),
                             &bytes)) {
    return absl::InvalidArgumentError("kv transfer: block memory larger than the address space");
  }
  if (layout.slab_bytes > 0 && (regions.slabs == nullptr || regions.num_slabs <= 0)) {
    return absl::InvalidArgumentError("kv transfer: no slab memory");
  }
  if (layout.selection_bytes() / sizeof(int32_t) > kMaxSelectionIndices) {
    return absl::InvalidArgumentError("kv transfer: too many selection indices");
  }
  if (regions.kind != MemoryKind::kHost && transport.device() == nullptr) {
    return absl::InvalidArgumentError(
        "kv transfer: device memory, but the transport was made for host memory only");
  }
  absl::Status status = transport.RegisterMemory(regions.blocks, bytes, regions.kind);
  if (status.ok() && layout.slab_bytes > 0) {
    status = transport.RegisterMemory(regions.slabs, regions.slabs_bytes(), regions.kind);
  }
  return status;
}

absl::Status CheckMemory(const MemoryRegions& regions, const TransferId& id, int64_t num_tokens,
                         const std::vector<int32_t>& blocks, int32_t slab) {
  if (id == TransferId{}) return absl::InvalidArgumentError("transfer id is all zeros");
  if (num_tokens <= 0 || num_tokens > kMaxBlocksPerTransfer * kv_cache::kTokensPerBlock) {
    return absl::InvalidArgumentError(absl::StrCat("transfer of ", num_tokens, " tokens"));
  }
  const int64_t needed = kv_cache::KvLayout::NumBlocks(num_tokens);
  if (static_cast<int64_t>(blocks.size()) != needed) {
    return absl::InvalidArgumentError(absl::StrCat(num_tokens, " tokens need ", needed,
                                                   " blocks, not ", blocks.size()));
  }
  for (const int32_t block : blocks) {
    if (block < 0 || block >= regions.num_blocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", block, " is outside of the pool of ", regions.num_blocks));
    }
  }
  const bool has_slab = regions.layout.slab_bytes > 0;
  if (has_slab ? (slab < 0 || slab >= regions.num_slabs) : slab != -1) {
    return absl::InvalidArgumentError(absl::StrCat("slab ", slab, " is outside of the pool"));
  }
  return absl::OkStatus();
}

std::vector<MemoryPart> PartsOf(const MemoryRegions& regions, int64_t layer_slot,
                                std::span<const int32_t> blocks) {
  const size_t slice_bytes = regions.layout.slice_bytes();
  std::vector<MemoryPart> parts;
  for (const int32_t block : blocks) {
    char* data = regions.Slice(layer_slot, block);
    if (!parts.empty() && parts.back().data + parts.back().bytes == data) {
      parts.back().bytes += slice_bytes;
    } else {
      parts.push_back({data, slice_bytes});
    }
  }
  return parts;
}

}  // namespace hyserve::kv_transfer
