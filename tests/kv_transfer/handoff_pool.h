// Memory of a pretended worker, filled with a pattern in which every word depends on the transfer,
// the layer, the block and its place, so that any mix-up is seen.
#ifndef HYSERVE_TESTS_KV_TRANSFER_HANDOFF_POOL_H_
#define HYSERVE_TESTS_KV_TRANSFER_HANDOFF_POOL_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kv_transfer/device_memory.h"
#include "kv_transfer/ticket.h"

namespace hyserve::kv_transfer {

// [layers] full layers with slices of 256 * head_dim bytes, a slab, two oracle slots.
inline kv_cache::KvLayout TestLayout(int layers, int head_dim, size_t slab_bytes) {
  kv_cache::KvLayout layout;
  layout.dtype = tensor::DType::kBF16;
  for (int i = 0; i < layers; ++i) layout.full_layers.push_back(2 * i);
  layout.num_kv_heads = 1;
  layout.head_dim = head_dim;
  layout.v_head_dim = head_dim;
  layout.window = slab_bytes > 0 ? 16 : 0;
  layout.slab_bytes = slab_bytes;
  layout.oracle_slots = {0, layers - 1};
  layout.selected_blocks = 2;
  layout.num_layers = 4 * layers;
  layout.model_digest = "test";
  return layout;
}

inline TransferId TestId(uint64_t n) {
  TransferId id;
  for (int i = 0; i < 8; ++i) id.bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(n >> (8 * i));
  id.bytes[15] = 1;
  return id;
}

// The blocks of `tokens` tokens: first, first + step, ...
inline std::vector<int32_t> BlockRun(int64_t tokens, int32_t first, int32_t step = 1) {
  std::vector<int32_t> blocks(static_cast<size_t>(kv_cache::KvLayout::NumBlocks(tokens)));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = first + step * static_cast<int32_t>(i);
  return blocks;
}

class HandoffPool {
 public:
  // With a device the memory is the device's.
  HandoffPool(const kv_cache::KvLayout& layout, int64_t num_blocks, int64_t num_slabs,
              std::shared_ptr<DeviceMemory> device = nullptr)
      : device_(std::move(device)) {
    regions_.layout = layout;
    regions_.num_blocks = num_blocks;
    regions_.num_slabs = num_slabs;
    regions_.kind = device_ == nullptr ? MemoryKind::kHost : MemoryKind::kCuda;
    regions_.blocks = Allocate(blocks_, static_cast<size_t>(num_blocks) * layout.block_bytes());
    regions_.slabs = Allocate(slabs_, static_cast<size_t>(num_slabs) * layout.slab_bytes + 1);
  }
  ~HandoffPool() {
    if (device_ == nullptr) return;
    device_->Free(DeviceMemory::Space::kDevice, regions_.blocks);
    device_->Free(DeviceMemory::Space::kDevice, regions_.slabs);
  }
  HandoffPool(const HandoffPool&) = delete;
  HandoffPool& operator=(const HandoffPool&) = delete;

  const MemoryRegions& regions() const { return regions_; }
  const kv_cache::KvLayout& layout() const { return regions_.layout; }

  // What a prefill of transfer `seed` would leave in these blocks and this slab.
  void Fill(uint64_t seed, const std::vector<int32_t>& blocks, int32_t slab) {
    Visit(seed, blocks, slab, true, [](char* data, size_t bytes, uint64_t word) {
      std::memcpy(data, &word, bytes);
      return true;
    });
  }
  // True when exactly that lies there.
  bool Holds(uint64_t seed, const std::vector<int32_t>& blocks, int32_t slab) {
    return Visit(seed, blocks, slab, false, [](char* data, size_t bytes, uint64_t word) {
      return std::memcmp(data, &word, bytes) == 0;
    });
  }
  void Poison(const std::vector<int32_t>& blocks, int32_t slab) {
    Visit(kPoison, blocks, slab, true, [](char* data, size_t bytes, uint64_t) {
      std::memset(data, 0xAB, bytes);
      return true;
    });
  }
  bool IsPoisoned(const std::vector<int32_t>& blocks, int32_t slab) {
    return Visit(kPoison, blocks, slab, false, [](char* data, size_t bytes, uint64_t) {
      uint64_t poison = 0;
      std::memset(&poison, 0xAB, sizeof(poison));
      return std::memcmp(data, &poison, bytes) == 0;
    });
  }
  static std::vector<int32_t> Selection(const kv_cache::KvLayout& layout, uint64_t seed,
                                        int64_t num_blocks) {
    std::vector<int32_t> selection(layout.selection_bytes() / sizeof(int32_t));
    for (size_t i = 0; i < selection.size(); ++i) {
      selection[i] = static_cast<int32_t>((seed + i) % static_cast<uint64_t>(num_blocks));
    }
    return selection;
  }

 private:
  static constexpr uint64_t kPoison = ~uint64_t{0};

  static uint64_t Mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  char* Allocate(std::vector<char>& host, size_t bytes) {
    if (device_ != nullptr) return *device_->Allocate(DeviceMemory::Space::kDevice, bytes);
    host.resize(bytes);
    return host.data();
  }

  // Calls word(address, bytes, expected) for every eight bytes; of device memory, on a copy that is
  // read from it before or written to it after.
  template <typename Word>
  bool Range(char* data, size_t bytes, uint64_t stream, bool writes, Word word) {
    using Direction = DeviceMemory::Direction;
    std::vector<char> copy(device_ == nullptr ? 0 : bytes);
    char* host = device_ == nullptr ? data : copy.data();
    if (device_ != nullptr && !writes &&
        !CopyAndWait(*device_, Direction::kToHost, host, data, bytes).ok()) {
      return false;
    }
    for (size_t i = 0; i < bytes; i += 8) {
      if (!word(host + i, std::min<size_t>(8, bytes - i), Mix(stream + i))) return false;
    }
    return device_ == nullptr || !writes ||
           CopyAndWait(*device_, Direction::kToDevice, data, host, bytes).ok();
  }
  template <typename Word>
  bool Visit(uint64_t seed, const std::vector<int32_t>& blocks, int32_t slab, bool writes,
             Word word) {
    const auto layers = static_cast<int64_t>(layout().full_layers.size());
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (size_t i = 0; i < blocks.size(); ++i) {
        const uint64_t stream = Mix(Mix(seed) + static_cast<uint64_t>(layer) * 1000003 + i);
        if (!Range(regions_.Slice(layer, blocks[i]), layout().slice_bytes(), stream, writes, word))
          return false;
      }
    }
    return slab < 0 ||
           Range(regions_.Slab(slab), layout().slab_bytes, Mix(~seed), writes, word);
  }

  const std::shared_ptr<DeviceMemory> device_;
  std::vector<char> blocks_;
  std::vector<char> slabs_;
  MemoryRegions regions_;
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_TESTS_KV_TRANSFER_HANDOFF_POOL_H_
