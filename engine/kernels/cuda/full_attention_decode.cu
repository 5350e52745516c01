#include "engine/kernels/cuda/full_attention_decode_launch.cuh"

namespace hyserve::kernels::cuda {
namespace {

// Stages of K, stages of V, blocks per SM: what fits shared memory with the most bytes in flight.
using Shape64 = DecodeShape<64, 64, 6, 6, 2, false>;
using Shape128 = DecodeShape<128, 128, 3, 3, 2, false>;
using Shape192 = DecodeShape<192, 128, 3, 2, 2, false>;
using Shape256 = DecodeShape<256, 256, 3, 2, 1, true>;

}  // namespace

bool DecodeSupports(int head_dim, int v_head_dim) {
  return (head_dim == 64 && v_head_dim == 64) || (head_dim == 128 && v_head_dim == 128) ||
         (head_dim == 192 && v_head_dim == 128) || (head_dim == 256 && v_head_dim == 256);
}

cudaError_t LaunchDecodeAttention(const SplitAttentionArgs& args, int num_sms,
                                  cudaStream_t stream) {
  if (!DecodeSupports(args.head_dim, args.v_head_dim)) return cudaErrorInvalidValue;
  switch (args.head_dim) {
    case 64: return LaunchDecodeShape<Shape64>(args, num_sms, stream);
    case 128: return LaunchDecodeShape<Shape128>(args, num_sms, stream);
    case 192: return LaunchDecodeShape<Shape192>(args, num_sms, stream);
    default: return LaunchDecodeShape<Shape256>(args, num_sms, stream);
  }
}

}  // namespace hyserve::kernels::cuda
