// The memory of all cached state on one device: blocks of the full layers and window slabs, as laid
// out in kv_cache/kv_layout.h. Memory only: who owns which block is the allocators' business
// (kv_cache/). The pool is one allocation for blocks and one for slabs, so that a transport
// registers them once.
//
// Contents are touched by the engine loop's thread (ops) and by the transport, never the same block
// at once: a block belongs to exactly one of them at any time.
#ifndef HYSERVE_ENGINE_ATTENTION_KV_POOL_H_
#define HYSERVE_ENGINE_ATTENTION_KV_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/kernels/attention_batch.h"
#include "engine/kv_cache/kv_layout.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/device.h"

namespace hyserve::attention {

class KvPool {
 public:
  // RESOURCE_EXHAUSTED when the device lacks the memory.
  static absl::StatusOr<std::unique_ptr<KvPool>> Create(tensor::Device& device,
                                                        const kv_cache::KvLayout& layout,
                                                        int64_t num_blocks, int64_t num_slabs);

  const kv_cache::KvLayout& layout() const { return layout_; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_slabs() const { return num_slabs_; }

  // Slice of block `block` in the region of layer slot `layer_slot`: layout().slice_bytes() bytes.
  char* Slice(int layer_slot, int32_t block) const {
    return static_cast<char*>(blocks_.data()) +
           (static_cast<int64_t>(layer_slot) * num_blocks_ + block) *
               static_cast<int64_t>(layout_.slice_bytes());
  }
  // Slab `slab`: layout().slab_bytes bytes.
  char* Slab(int32_t slab) const {
    return static_cast<char*>(slabs_.data()) +
           static_cast<int64_t>(slab) * static_cast<int64_t>(layout_.slab_bytes);
  }

  // Views for the ops. `ring` indexes layout().rings.
  kernels::PagedKv Paged(int layer_slot) const;
  kernels::WindowKv Window(int ring) const;

  const tensor::Buffer& block_memory() const { return blocks_; }
  const tensor::Buffer& slab_memory() const { return slabs_; }

 private:
  KvPool(const kv_cache::KvLayout& layout, int64_t num_blocks, int64_t num_slabs,
         tensor::Buffer blocks, tensor::Buffer slabs)
      : layout_(layout),
        num_blocks_(num_blocks),
        num_slabs_(num_slabs),
        blocks_(std::move(blocks)),
        slabs_(std::move(slabs)) {}

  kv_cache::KvLayout layout_;
  int64_t num_blocks_;
  int64_t num_slabs_;
  tensor::Buffer blocks_;
  tensor::Buffer slabs_;
};

}  // namespace hyserve::attention

#endif  // HYSERVE_ENGINE_ATTENTION_KV_POOL_H_
