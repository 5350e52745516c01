// The kernels of WindowSparseAttention and what they are given. Plain C++ and CUDA runtime
// types only, so that the .cu files compile alone. bf16 tensors are passed as uint16_t. Formulas:
// ops.h.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_LAUNCH_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace hyserve::kernels::cuda {

// A row-major bf16 matrix on the device; stride in elements.
struct SparseMatrix {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
};

// A gate before the sigmoid: [rows, num_heads], or [rows, num_heads * v_head_dim] when per_element.
// data null: the gate counts as 1.
struct SparseGate {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
  bool per_element = false;
};

struct WindowSparseArgs {
  SparseMatrix q;
  uint16_t* out = nullptr;
  int64_t out_stride = 0;
  int num_rows = 0;
  int num_seqs = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  float scale = 1.0f;
  bool one_row_each = false;  // every sequence has exactly one row
  // AttentionBatch's device arrays.
  const int32_t* positions = nullptr;
  const int32_t* row_seq = nullptr;
  const int32_t* row_begin = nullptr;
  const int32_t* first_position = nullptr;
  const int32_t* page_table = nullptr;
  int page_table_stride = 0;
  const int32_t* slab_index = nullptr;
  // Window branch.
  const char* ring = nullptr;
  int64_t slab_stride_bytes = 0;
  int64_t ring_k_offset_bytes = 0;
  int64_t ring_v_offset_bytes = 0;
  int window = 0;
  SparseMatrix step_k;
  SparseMatrix step_v;
  const float* window_sink = nullptr;
  SparseGate window_gate;
  // Sparse branch; selection null: a sliding layer.
  const uint16_t* pages = nullptr;
  int64_t num_blocks = 0;
  const int32_t* selection = nullptr;
  int selected_blocks = 0;
  const float* sparse_sink = nullptr;
  SparseGate sparse_gate;
};

inline constexpr int kSparseBlock = 64;  // tokens per page
inline constexpr int kSparseMaxDim = 256;

// Sequences of at most this many rows in the step are the decode kernel's, longer ones the prefill
// kernel's: the choice is each sequence's own.
inline constexpr int kSparseDecodeRows = 8;

// Any heads, any dims up to kSparseMaxDim, any alignment. All rows.
cudaError_t LaunchWindowSparseGeneric(const WindowSparseArgs& args, cudaStream_t stream);

// True when the decode kernels can do the shape and the alignment.
bool WindowSparseDecodeSupports(const WindowSparseArgs& args);
// Both decode kernels give the same bits. kCluster: up to 16 selected blocks and a window of 128.
enum class DecodeKernel { kAuto, kCluster, kStream };
// Rows of the sequences with at most kSparseDecodeRows rows. rows_per_seq: the largest number of
// rows among those sequences.
cudaError_t LaunchWindowSparseDecode(const WindowSparseArgs& args, int rows_per_seq,
                                     DecodeKernel kernel, cudaStream_t stream);

// The same for the prefill kernel.
bool WindowSparsePrefillSupports(const WindowSparseArgs& args);
// Query tokens of one tile.
int WindowSparsePrefillTileTokens(const WindowSparseArgs& args);
// The sequences that are the prefill kernels': those with more than min_rows rows.
struct SparsePrefillWork {
  int min_rows = 0;
  int num_rows = 0;    // of those sequences
  int num_tiles = 0;   // sum of ceil(rows / WindowSparsePrefillTileTokens(args))
  int num_blocks = 0;  // sum of ceil(context / kSparseBlock), or more
  int max_blocks = 0;  // the most of one sequence
};
// Device memory that the call needs; 0: none. Bounded by about kSparsePartialBytes + 16 bytes per
// (row, kv head, selected block).
inline constexpr size_t kSparsePartialBytes = size_t{1} << 29;
size_t WindowSparsePrefillWorkspaceBytes(const WindowSparseArgs& args,
                                         const SparsePrefillWork& work);
// The most that calls need of up to args.num_rows rows, args.num_seqs sequences and max_blocks
// blocks of a sequence's context. Of args these, the heads, their sizes and selected_blocks count.
size_t WindowSparsePrefillMostWorkspaceBytes(const WindowSparseArgs& args, int max_blocks);
// Their rows. workspace: as large as said, 256-byte aligned; null: tiles only, whatever they cost.
cudaError_t LaunchWindowSparsePrefill(const WindowSparseArgs& args, const SparsePrefillWork& work,
                                      char* workspace, int num_sms, cudaStream_t stream);

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_WINDOW_SPARSE_ATTENTION_LAUNCH_H_
