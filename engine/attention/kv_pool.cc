#include "engine/attention/kv_pool.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hyserve::attention {
namespace {

// bytes = count * each, or RESOURCE_EXHAUSTED when that is no size at all.
absl::StatusOr<size_t> PoolBytes(const char* what, int64_t count, size_t each) {
  if (count < 0) return absl::InvalidArgumentError(absl::StrCat("KV pool: negative ", what));
  size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<size_t>(count), each, &bytes) ||
      bytes > static_cast<size_t>(std::numeric_limits<int64_t>::max())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV pool: ", count, " ", what, " of ", each, " bytes do not fit in memory"));
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Create(tensor::Device& device,
                                                       const kv_cache::KvLayout& layout,
                                                       int64_t num_blocks, int64_t num_slabs) {
  if (num_blocks > std::numeric_limits<int32_t>::max() ||
      num_slabs > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError("KV pool: more blocks or slabs than an int32 can number");
  }
  const absl::StatusOr<size_t> block_bytes =
      PoolBytes("blocks", num_blocks, layout.block_bytes());
  if (!block_bytes.ok()) return block_bytes.status();
  const absl::StatusOr<size_t> slab_bytes = PoolBytes("slabs", num_slabs, layout.slab_bytes);
  if (!slab_bytes.ok()) return slab_bytes.status();

  tensor::Buffer blocks;
  if (*block_bytes > 0) {
    absl::StatusOr<tensor::Buffer> buffer = device.Allocate(*block_bytes);
    if (!buffer.ok()) return buffer.status();
    blocks = *std::move(buffer);
  }
  tensor::Buffer slabs;
  if (*slab_bytes > 0) {
    absl::StatusOr<tensor::Buffer> buffer = device.Allocate(*slab_bytes);
    if (!buffer.ok()) return buffer.status();
    slabs = *std::move(buffer);
  }
  return std::unique_ptr<KvPool>(
      new KvPool(layout, num_blocks, num_slabs, std::move(blocks), std::move(slabs)));
}

kernels::PagedKv KvPool::Paged(int layer_slot) const {
  return {.data = Slice(layer_slot, 0),
          .dtype = layout_.dtype,
          .num_blocks = num_blocks_,
          .num_kv_heads = layout_.num_kv_heads,
          .head_dim = layout_.head_dim,
          .v_head_dim = layout_.v_head_dim};
}

kernels::WindowKv KvPool::Window(int ring) const {
  const kv_cache::RingLayout& shape = layout_.rings[ring];
  return {.data = slabs_.data(),
          .dtype = layout_.dtype,
          .slab_stride_bytes = static_cast<int64_t>(layout_.slab_bytes),
          .k_offset_bytes = static_cast<int64_t>(shape.k_offset_bytes),
          .v_offset_bytes = static_cast<int64_t>(shape.v_offset_bytes),
          .window = layout_.window,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .v_head_dim = shape.v_head_dim};
}

}  // namespace hyserve::attention
