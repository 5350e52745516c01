// What cuda_ops.h is in a build without CUDA: no implementation of any op.
#ifndef HYSERVE_ENGINE_KERNELS_CUDA_NO_CUDA_OPS_H_
#define HYSERVE_ENGINE_KERNELS_CUDA_NO_CUDA_OPS_H_

#include <cstddef>

namespace hyserve::kernels::cuda {

inline constexpr std::nullptr_t PackMatrix = nullptr;
inline constexpr std::nullptr_t PackedMatrixBytes = nullptr;
inline constexpr std::nullptr_t EmbedTokens = nullptr;
inline constexpr std::nullptr_t AddRmsNorm = nullptr;
inline constexpr std::nullptr_t Linear = nullptr;
inline constexpr std::nullptr_t SwiGlu = nullptr;
inline constexpr std::nullptr_t LinearSwiGlu = nullptr;
inline constexpr std::nullptr_t GatherRows = nullptr;
inline constexpr std::nullptr_t SampleTokens = nullptr;
inline constexpr std::nullptr_t MixtureOfExperts = nullptr;
inline constexpr std::nullptr_t Rotary = nullptr;
inline constexpr std::nullptr_t AppendPagedKv = nullptr;
inline constexpr std::nullptr_t PrepareWindowKv = nullptr;
inline constexpr std::nullptr_t StoreWindowKv = nullptr;
inline constexpr std::nullptr_t FullAttention = nullptr;
inline constexpr std::nullptr_t WindowSparseAttention = nullptr;
inline constexpr std::nullptr_t ReserveLinear = nullptr;
inline constexpr std::nullptr_t ReserveMixtureOfExperts = nullptr;
inline constexpr std::nullptr_t ReserveFullAttention = nullptr;
inline constexpr std::nullptr_t ReserveWindowSparseAttention = nullptr;

}  // namespace hyserve::kernels::cuda

#endif  // HYSERVE_ENGINE_KERNELS_CUDA_NO_CUDA_OPS_H_
