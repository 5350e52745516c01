// Launchers of the rotary kernel and of the kernels that write caches. Strides in elements;
// pointers are device pointers; at least one row. Each enqueues one kernel on the stream and
// returns the launch's error. Formulas: ops.h.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_ROTARY_CACHE_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_ROTARY_CACHE_H_

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace hyserve::kernels::cuda {

inline constexpr int kCacheBlockTokens = 64;

// The first rotary_dim dims of every head of a row.
struct RotaryAngles {
  const double* inv_freq = nullptr;    // [rotary_dim / 2]
  const int32_t* positions = nullptr;  // [num_rows]
  int rotary_dim = 0;
};

struct RotaryLaunch {
  __nv_bfloat16* x = nullptr;  // [num_rows, num_heads * head_dim], in place
  int64_t x_stride = 0;
  int num_heads = 0;
  int head_dim = 0;
  RotaryAngles angles;  // rotary_dim > 0
  int64_t num_rows = 0;
};
cudaError_t LaunchRotary(const RotaryLaunch& launch, cudaStream_t stream);

// The slots of the rows' positions in their sequences' pages (kv_cache/kv_layout.h).
struct PagedDestination {
  __nv_bfloat16* pages = nullptr;
  int64_t slice = 0;    // elements of one block's K and V
  int64_t k_slice = 0;  // elements of its K
  const int32_t* page_table = nullptr;
  int page_table_stride = 0;
  const int32_t* row_seq = nullptr;  // [num_rows]
};
// The rings of one window layer over all slabs (attention_batch.h).
struct RingMemory {
  char* slabs = nullptr;
  int64_t slab_stride_bytes = 0;
  int64_t k_offset_bytes = 0;
  int64_t v_offset_bytes = 0;
  int window = 0;
  const int32_t* slab_index = nullptr;  // [num_seqs]
};
// Row r of two matrices and, where ring.slabs is given, the slot of row r's position in the ring of
// sequence r.
struct StepDestination {
  __nv_bfloat16* k = nullptr;
  int64_t k_stride = 0;
  __nv_bfloat16* v = nullptr;
  int64_t v_stride = 0;
  RingMemory ring = {};
};

// Rotates q and k in place and writes k and value_scale * v to the destination.
struct KvWrite {
  __nv_bfloat16* q = nullptr;  // [num_rows, num_q_heads * head_dim] or null
  int64_t q_stride = 0;
  int num_q_heads = 0;
  __nv_bfloat16* k = nullptr;  // [num_rows, num_kv_heads * head_dim]
  int64_t k_stride = 0;
  const __nv_bfloat16* v = nullptr;  // [num_rows, num_kv_heads * v_head_dim]
  int64_t v_stride = 0;
  RotaryAngles angles;  // positions are needed with pages even when rotary_dim is 0
  float value_scale = 1.0f;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  int64_t num_rows = 0;
};
cudaError_t LaunchAppendPagedKv(const KvWrite& write, const PagedDestination& to,
                                cudaStream_t stream);
cudaError_t LaunchPrepareWindowKv(const KvWrite& write, const StepDestination& to,
                                  cudaStream_t stream);

struct StoreWindowKvLaunch {
  const __nv_bfloat16* k = nullptr;  // [num_rows, num_kv_heads * head_dim]
  int64_t k_stride = 0;
  const __nv_bfloat16* v = nullptr;
  int64_t v_stride = 0;
  RingMemory ring = {};
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  const int32_t* row_begin = nullptr;       // [num_seqs + 1]
  const int32_t* first_position = nullptr;  // [num_seqs]
  int num_seqs = 0;
  int max_rows_per_seq = 0;
};
cudaError_t LaunchStoreWindowKv(const StoreWindowKvLaunch& launch, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_ROTARY_CACHE_H_
