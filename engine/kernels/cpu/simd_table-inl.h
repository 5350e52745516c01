// The table of the instruction set whose file includes this, after the kernels themselves.
// No include guard: included once by each simd_*.cc.

namespace hyserve::kernels::cpu {
namespace {

constexpr SimdKernels MakeTable() {
  SimdKernels table;
  table.vector_width = Simd::kWidth;
  table.panel_cols = kPanelCols;
  table.tile_rows = Simd::kTileRows;
  table.gemm_packed_f32 = &GemmPacked<F32Panel>;
  table.gemm_packed_bf16 = &GemmPacked<Bf16Panel>;
  table.gemv_f32 = &Gemv<F32Panel>;
  table.gemv_bf16 = &Gemv<Bf16Panel>;
  table.pack_keys_f32 = &PackKeysF32;
  table.pack_keys_bf16 = &PackKeysBf16;
  table.logits_f32 = &LogitsF32;
  table.logits_bf16 = &LogitsBf16;
  table.weigh_f32 = &WeighF32;
  table.weigh_bf16 = &WeighBf16;
  table.join_columns = &JoinColumns;
  table.softmax_step = &SoftmaxStep;
  table.block_scores = &BlockScores;
  table.bf16_to_f32 = &Bf16ToF32;
  table.f32_to_bf16 = &F32ToBf16;
  table.scale = &ScaleRow;
  table.blend = &Blend;
  table.gated = &Gated;
  table.swiglu = &SwiGluRow;
  table.add_rms_norm = &AddRmsNormRow;
  table.angles = &Angles;
  table.rotate = &RotatePairs;
  return table;
}

}  // namespace
}  // namespace hyserve::kernels::cpu
