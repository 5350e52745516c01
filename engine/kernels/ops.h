// Every operation of the engine: one params struct and one function per op. ops.cc checks the
// shapes and dispatches on the device; cpu/ holds the reference and default implementation.
//
// Contract of every op:
// - Row invariance on the CPU: the result of a row is bitwise independent of which other rows are
//   in the call, of how a prompt was cut into chunks and of the number of threads. So a sequence
//   gives the same tokens alone, in a batch, chunked, restored from a prefix or handed over.
// - On CUDA every op is deterministic, and row-invariant within one kernel; which kernel runs
//   depends on the number of rows (few, many) and of a sequence's rows in the step, for sparse
//   layers also on how alike neighbouring rows select, so other chunks or batches may round
//   differently.
// - Activations are device.activation_dtype(); accumulation is f32. Norm weights, sinks and router
//   biases are f32.
// - Inputs and outputs may not overlap unless a comment says so.
// - Errors: INVALID_ARGUMENT names the op and the shape that does not fit; anything else is the
//   device's. Not thread-safe: called by the engine loop's thread only.
// Formulas: HySparse, arXiv 2602.03560, as written out in the comments below.
#ifndef HYSERVE_ENGINE_KERNELS_OPS_H_
#define HYSERVE_ENGINE_KERNELS_OPS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/attention_batch.h"
#include "engine/kernels/sample_tokens.h"
#include "engine/tensor/device.h"
#include "engine/tensor/tensor.h"

namespace hyserve::kernels {

using tensor::Device;
using tensor::TensorView;

// ---- Weights ------------------------------------------------------------------------------------

// A weight matrix [out_features, in_features] in the layout that Linear wants on its device.
// Immutable, may be shared between threads.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
  virtual tensor::DType dtype() const = 0;
  virtual size_t size_bytes() const = 0;
};

// Packs host matrices (row-major [n_i, in_features], f32 / bf16 / f16, all of one dtype) stacked
// along out_features: one GEMM for Q, K, V and gates. The CPU keeps f32 and bf16 as they are and
// f16 as f32; CUDA rounds everything to bf16. The parts are read only during the call.
absl::StatusOr<std::unique_ptr<PackedMatrix>> PackMatrix(Device& device,
                                                         std::span<const TensorView> host_parts);

// Of the parts: their rows summed, their columns, their dtype.
struct PackedMatrixShape {
  int64_t out_features = 0;
  int64_t in_features = 0;
  tensor::DType dtype = tensor::DType::kBF16;
};
// What PackMatrix allocates: PackedMatrix::size_bytes() before there is a matrix.
absl::StatusOr<size_t> PackedMatrixBytes(Device& device, const PackedMatrixShape& shape);

// ---- Dense parts --------------------------------------------------------------------------------

struct EmbedTokensParams {
  const int32_t* token_ids = nullptr;  // device, [num_rows]; REQUIRES: in [0, table.rows)
  TensorView table;                    // device, [vocab, hidden], f32 or bf16
  TensorView out;                      // [num_rows, hidden]
};
absl::Status EmbedTokens(Device& device, const EmbedTokensParams& params);

// hidden += delta (if there is one); out = hidden / sqrt(mean(hidden^2) + epsilon) * weight.
struct AddRmsNormParams {
  TensorView hidden;              // [num_rows, hidden], in and out when delta is given
  TensorView delta;               // [num_rows, hidden] or empty
  const float* weight = nullptr;  // device, [hidden]
  float epsilon = 1e-5f;
  TensorView out;  // [num_rows, hidden]; empty: only the addition
};
absl::Status AddRmsNorm(Device& device, const AddRmsNormParams& params);

// y = x W^T.
struct LinearParams {
  TensorView x;  // [num_rows, in_features]
  const PackedMatrix* weight = nullptr;
  TensorView y;  // [num_rows, out_features], activation dtype or f32
};
absl::Status Linear(Device& device, const LinearParams& params);

// out = silu(gate) * up.
struct SwiGluParams {
  TensorView gate_up;  // [num_rows, 2 * intermediate]: gate columns, then up columns
  TensorView out;      // [num_rows, intermediate]
};
absl::Status SwiGlu(Device& device, const SwiGluParams& params);

// Both in one: out = silu(gate) * up of [gate, up] = x W^T, rounded as by Linear and SwiGlu.
struct LinearSwiGluParams {
  TensorView x;  // [num_rows, in_features]
  const PackedMatrix* weight = nullptr;  // [2 * intermediate, in_features]
  TensorView gate_up;  // [num_rows, 2 * intermediate]: room for the product, undefined afterwards
  TensorView out;      // [num_rows, intermediate]
};
absl::Status LinearSwiGlu(Device& device, const LinearSwiGluParams& params);

// out[i] = x[rows[i]].
struct GatherRowsParams {
  TensorView x;                   // [num_rows, cols]
  const int32_t* rows = nullptr;  // device, [out.rows]
  TensorView out;                 // [num_out, cols]
};
absl::Status GatherRows(Device& device, const GatherRowsParams& params);

// Mixture of experts with a sigmoid router:
//   s = sigmoid(logits); chosen = top k of s + correction_bias (ties: lower index);
//   w = s[chosen], divided by their sum if normalize, times scaling_factor;
//   out = sum over chosen, in ascending order, of w_e * down_e(silu(gate_e x) * up_e x).
struct MoeParams {
  TensorView x;                           // [num_rows, hidden]
  TensorView router_logits;               // [num_rows, num_experts], f32
  const float* correction_bias = nullptr; // device, [num_experts] or null
  std::span<const std::unique_ptr<PackedMatrix>> gate_up;  // per expert [2 * intermediate, hidden]
  std::span<const std::unique_ptr<PackedMatrix>> down;     // per expert [hidden, intermediate]
  int experts_per_token = 0;
  bool normalize = true;
  float scaling_factor = 1.0f;
  TensorView out;  // [num_rows, hidden]
};
absl::Status MixtureOfExperts(Device& device, const MoeParams& params);

// ---- Sampling -----------------------------------------------------------------------------------

// Chooses the token of every row of logits, or scores a given one (sample_tokens.h). In this order:
//   1. NaN becomes minus infinity, plus infinity the largest finite float
//   2. the row's edits: bias, penalties, impossible tokens
//   3. log-probabilities, where asked for: logit - log(sum(exp(logits)))
//   4. temperature 0: the token with the largest logit. Else weight = exp((logit - max) /
//      temperature), and of the tokens with a weight:
//   5. top_k: the k best
//   6. top_p: of these, the shortest run of the best whose weights sum to top_p of the whole
//   7. min_p: of these, those with a weight of at least min_p
//   8. the first token at which the running sum of weights exceeds uniform * their sum: in the
//      order of ids, or, where top_k < vocab, top_p < 1 or min_p > 0, best first
// Equal logits are ordered by lower id everywhere. Weights and sums are double on the CPU, at least
// as fine as 2^-40 of the best token's weight on CUDA.
struct SampleTokensParams {
  TensorView logits;                  // [num_rows, vocab_size], f32; changed by the op
  const SampleRow* rows = nullptr;    // device, [num_rows]
  const LogitEdit* edits = nullptr;   // device; may be null when no row has edits
  SampledRow* out = nullptr;          // device, [num_rows]
};
absl::Status SampleTokens(Device& device, const SampleTokensParams& params);

// ---- Rotary and cache writes --------------------------------------------------------------------

// Rotates the first rotary_dim dims of every head, pairs (i, i + rotary_dim / 2), by the angle
// position * inv_freq[i]; inv_freq[i] = theta^(-2 i / rotary_dim). In place.
struct RotaryParams {
  TensorView x;  // [num_rows, num_heads * head_dim]
  int num_heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;                   // even, <= head_dim; 0: nothing to do
  const double* inv_freq = nullptr;      // device, [rotary_dim / 2]
  const int32_t* positions = nullptr;   // device, [num_rows]
};
absl::Status Rotary(Device& device, const RotaryParams& params);

// Rotates q and k (as Rotary, in place), multiplies v by value_scale, rounds k and v to the cache's
// dtype and writes them to the pages of each row's sequence.
struct AppendPagedKvParams {
  TensorView q = {};  // [num_rows, num_heads * head_dim] or empty
  TensorView k;  // [num_rows, num_kv_heads * head_dim]
  TensorView v;  // [num_rows, num_kv_heads * v_head_dim]
  int rotary_dim = 0;
  const double* inv_freq = nullptr;
  float value_scale = 1.0f;
  const AttentionBatch* batch = nullptr;
  PagedKv kv;
};
absl::Status AppendPagedKv(Device& device, const AppendPagedKvParams& params);

// The same for a window layer, but into a buffer of this step's rows: the rings still hold keys
// that the step's first rows must see. WindowSparseAttention reads ring and buffer; StoreWindowKv
// then moves the last rows into the ring. With one row per sequence the slot that the row takes
// holds the key that has just left the window: then the ring, if given, is written at once and
// StoreWindowKv is not needed.
struct PrepareWindowKvParams {
  TensorView q = {};  // [num_rows, num_heads * head_dim] or empty
  TensorView k;
  TensorView v;
  int rotary_dim = 0;
  const double* inv_freq = nullptr;
  float value_scale = 1.0f;
  const AttentionBatch* batch = nullptr;
  TensorView step_k;  // [num_rows, num_kv_heads * head_dim], cache dtype
  TensorView step_v;  // [num_rows, num_kv_heads * v_head_dim], cache dtype
  int num_kv_heads = 0;
  int head_dim = 0;
  WindowKv ring = {};  // data null: not written; REQUIRES one row per sequence
};
absl::Status PrepareWindowKv(Device& device, const PrepareWindowKvParams& params);

// Writes the last min(rows, window) rows of every sequence into its ring (slot = position mod
// window).
struct StoreWindowKvParams {
  TensorView step_k;
  TensorView step_v;
  const AttentionBatch* batch = nullptr;
  WindowKv ring;
};
absl::Status StoreWindowKv(Device& device, const StoreWindowKvParams& params);

// ---- Attention ----------------------------------------------------------------------------------

// Causal attention of a full layer over the pages, and its oracle output:
//   a[t,h,j] = scale * q[t,h] . k[j, h / (heads per group)]  for j <= t
//   LSE[t,h] = log sum_j exp a;  out[t,h] = sum_j exp(a - LSE) v[j]
//   score[t,g,i] = max over heads h of g of (max over visible j in block i of a[t,h,j]) - LSE[t,h]
//   selection[t,g] = the selected_blocks best i by (score descending, i ascending), written in
//                    ascending order of i, padded with -1 when fewer blocks are visible.
// The pages must already hold the keys of every row (AppendPagedKv).
struct FullAttentionParams {
  TensorView q;    // [num_rows, num_heads * head_dim], rotated
  TensorView out;  // [num_rows, num_heads * v_head_dim]
  int num_heads = 0;
  float scale = 1.0f;
  const AttentionBatch* batch = nullptr;
  PagedKv kv;
  int32_t* selection = nullptr;  // device, [num_rows, num_kv_heads, selected_blocks] or null
  int selected_blocks = 0;       // 1 .. 64
  // For tests and reports: [num_rows, num_kv_heads, scores_stride >= blocks of max_context],
  // device, -inf where a block is not visible. Null in serving.
  float* block_scores = nullptr;
  int64_t scores_stride = 0;
};
absl::Status FullAttention(Device& device, const FullAttentionParams& params);

// A sparse layer (both branches) or a sliding layer (selection null: the window branch only):
//   o_w[t,h] = softmax over j in (t - window, t] of scale * q . k'_j, with sink, times v'_j
//   o_s[t,h] = softmax over visible j of the blocks selection[t, g(h)] of scale * q . K_j, with
//              sink, times V_j (K, V: pages of the full layer that the selection came from)
//   out = sigmoid(sparse_gate) * o_s + sigmoid(window_gate) * o_w; a missing gate counts as 1.
// A sink b adds exp(b) to the softmax's denominator and has no value.
struct WindowSparseAttentionParams {
  TensorView q;    // [num_rows, num_heads * head_dim], rotated
  TensorView out;  // [num_rows, num_heads * v_head_dim]
  int num_heads = 0;
  float scale = 1.0f;
  const AttentionBatch* batch = nullptr;
  // Window branch.
  WindowKv ring;
  TensorView step_k;  // from PrepareWindowKv
  TensorView step_v;
  const float* window_sink = nullptr;  // device, [num_heads] or null
  TensorView window_gate;  // [num_rows, num_heads] or [num_rows, num_heads * v_head_dim]
                                       // before the sigmoid, or empty
  // Sparse branch.
  PagedKv kv;
  const int32_t* selection = nullptr;  // device, [num_rows, kv.num_kv_heads, selected_blocks]
  int selected_blocks = 0;
  const float* sparse_sink = nullptr;
  TensorView sparse_gate;
};
absl::Status WindowSparseAttention(Device& device, const WindowSparseAttentionParams& params);

}  // namespace hyserve::kernels

#endif  // HYSERVE_ENGINE_KERNELS_OPS_H_
