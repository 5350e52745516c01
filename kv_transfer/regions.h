// Checks of this process's own memory description, shared by Exporter and Importer.
#ifndef HYSERVE_KV_TRANSFER_REGIONS_H_
#define HYSERVE_KV_TRANSFER_REGIONS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kv_transfer/ticket.h"
#include "kv_transfer/transport.h"

namespace hyserve::kv_transfer {

// INVALID_ARGUMENT for regions that do not fit their layout, or for device memory with a transport
// that has no device; else registers blocks and slabs with the transport.
absl::Status RegisterRegions(Transport& transport, const MemoryRegions& regions);

// INVALID_ARGUMENT unless the blocks and the slab are those of a sequence of num_tokens tokens.
absl::Status CheckMemory(const MemoryRegions& regions, const TransferId& id, int64_t num_tokens,
                         const std::vector<int32_t>& blocks, int32_t slab);

// Messages may be cut without regard to where blocks lie.
inline bool Gathers(const Transport& transport, const MemoryRegions& regions) {
  return regions.kind == MemoryKind::kCuda && transport.CanGather();
}

// Where these blocks of a layer slot lie, neighbours merged.
std::vector<MemoryPart> PartsOf(const MemoryRegions& regions, int64_t layer_slot,
                                std::span<const int32_t> blocks);

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_REGIONS_H_
