#include "engine/kernels/cuda/blas_gemm.h"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <tuple>

namespace hyserve::kernels::cuda {
namespace {

// What the choice of an algorithm depends on. Strides are left out: they are all multiples of 16
// bytes.
using PlanKey = std::tuple<int, int64_t, int64_t, int64_t, bool>;  // device, out, in, rows, f32

// Without a split of K there are no good algorithms for few outputs and few rows: those of 128 rows
// serve them ten times as fast as the ones proposed for 64.
constexpr int64_t LeastRows(int64_t out_features) { return out_features < 4096 ? 128 : 64; }
constexpr int64_t kMostRows = 16384;
constexpr size_t kMostPlans = 4096;

class PlanCache {
 public:
  bool Find(const PlanKey& key, cublasLtMatmulAlgo_t* algo) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = plans_.find(key);
    if (it == plans_.end()) return false;
    *algo = it->second;
    return true;
  }
  void Put(const PlanKey& key, const cublasLtMatmulAlgo_t& algo) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (plans_.size() >= kMostPlans) plans_.clear();
    plans_[key] = algo;
  }

 private:
  std::mutex mutex_;
  std::map<PlanKey, cublasLtMatmulAlgo_t> plans_;
};

PlanCache& Plans() {
  static PlanCache* const plans = new PlanCache;  // never destroyed: no order of destruction
  return *plans;
}

struct Layouts {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, x, y;
};

// cuBLAS is column-major: it sees y^T [out, rows] = W (transposed from [in, out]) x^T [in, rows].
cublasStatus_t Describe(const BlasGemmArgs& args, int64_t rows, Layouts* layouts) {
  cublasStatus_t status =
      cublasLtMatmulDescInit(&layouts->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const cublasOperation_t transpose = CUBLAS_OP_T;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmulDescSetAttribute(&layouts->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                            &transpose, sizeof(transpose));
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatrixLayoutInit(&layouts->weight, CUDA_R_16BF, args.in_features,
                                      args.out_features, args.weight_stride);
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatrixLayoutInit(&layouts->x, CUDA_R_16BF, args.in_features, rows,
                                      args.x_stride);
  }
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatrixLayoutInit(&layouts->y, args.y_is_f32 ? CUDA_R_32F : CUDA_R_16BF,
                                      args.out_features, rows, args.y_stride);
  }
  return status;
}

cublasStatus_t Choose(cublasLtHandle_t handle, Layouts& layouts,
                      cublasLtMatmulAlgo_t* algo) {
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasStatus_t status = cublasLtMatmulPreferenceInit(&preference);
  const uint64_t workspace_bytes = kBlasWorkspaceBytes;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmulPreferenceSetAttribute(&preference,
                                                  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                  &workspace_bytes, sizeof(workspace_bytes));
  }
  const uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmulPreferenceSetAttribute(&preference,
                                                  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                  &no_split, sizeof(no_split));
  }
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  status = cublasLtMatmulAlgoGetHeuristic(handle, &layouts.operation, &layouts.weight, &layouts.x,
                                          &layouts.y, &layouts.y, &preference, 1, &result, &count);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (count == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  *algo = result.algo;
  return result.state;
}

}  // namespace

cublasStatus_t RunBlasGemm(cublasLtHandle_t handle, const BlasGemmArgs& args, void* workspace,
                           cudaStream_t stream) {
  Layouts layouts;
  cublasStatus_t status = Describe(args, args.rows, &layouts);
  if (status != CUBLAS_STATUS_SUCCESS) return status;

  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return CUBLAS_STATUS_INTERNAL_ERROR;
  const auto bucket = static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(
          std::clamp(args.rows, LeastRows(args.out_features), kMostRows))));
  const PlanKey key{device, args.out_features, args.in_features, bucket, args.y_is_f32};
  cublasLtMatmulAlgo_t algo;
  if (!Plans().Find(key, &algo)) {
    Layouts rounded;
    status = Describe(args, bucket, &rounded);
    if (status == CUBLAS_STATUS_SUCCESS) status = Choose(handle, rounded, &algo);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    Plans().Put(key, algo);
  }
  const float one = 1.0f;
  const float zero = 0.0f;
  return cublasLtMatmul(handle, &layouts.operation, &one, args.weight, &layouts.weight, args.x,
                        &layouts.x, &zero, args.y, &layouts.y, args.y, &layouts.y, &algo, workspace,
                        kBlasWorkspaceBytes, stream);
}

}  // namespace hyserve::kernels::cuda
