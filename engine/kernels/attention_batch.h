// What an attention op must know about the rows of one step: which rows belong to which sequence,
// where each row stands in its context, and where the cached state of the sequence lies.
//
// Built on the host once per step (engine/attention), used by every layer. On the CPU the device
// pointers are host pointers.
#ifndef HYSERVE_ENGINE_KERNELS_ATTENTION_BATCH_H_
#define HYSERVE_ENGINE_KERNELS_ATTENTION_BATCH_H_

#include <cstdint>

#include "engine/tensor/tensor.h"

namespace hyserve::kernels {

// Rows of sequence s are [row_begin[s], row_begin[s + 1]). Its row i stands at position
// first_position[s] + i and sees keys 0 .. position (itself included).
struct AttentionBatch {
  int num_seqs = 0;
  int num_rows = 0;
  int max_rows_per_seq = 0;
  int max_context = 0;  // largest position + 1
  // > 0: no sequence's context is longer, and every sequence has one row. Sizes and grids are then
  // to come from this in place of first_position, so that steps that differ in contexts only
  // enqueue the same (Device::RunRecorded).
  int context_bound = 0;
  // Host arrays.
  const int32_t* row_begin = nullptr;       // [num_seqs + 1]
  const int32_t* first_position = nullptr;  // [num_seqs]
  // Device arrays.
  const int32_t* positions = nullptr;      // [num_rows]
  const int32_t* row_seq = nullptr;        // [num_rows] sequence of each row
  const int32_t* device_row_begin = nullptr;       // [num_seqs + 1]
  const int32_t* device_first_position = nullptr;  // [num_seqs]
  const int32_t* page_table = nullptr;     // [num_seqs, page_table_stride] block ids
  int page_table_stride = 0;
  const int32_t* slab_index = nullptr;     // [num_seqs]; -1 when the model has no window layers
};

// K and V of one full layer: slice b at data + b * slice_bytes, as in kv_cache/kv_layout.h.
struct PagedKv {
  void* data = nullptr;
  tensor::DType dtype = tensor::DType::kBF16;
  int64_t num_blocks = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
};

// The rings of one window layer over all slabs: slab s at data + s * slab_stride_bytes; inside it
// K [num_kv_heads][window][head_dim] at k_offset_bytes and V [num_kv_heads][window][v_head_dim].
struct WindowKv {
  void* data = nullptr;
  tensor::DType dtype = tensor::DType::kBF16;
  int64_t slab_stride_bytes = 0;
  int64_t k_offset_bytes = 0;
  int64_t v_offset_bytes = 0;
  int window = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
};

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_ATTENTION_BATCH_H_
