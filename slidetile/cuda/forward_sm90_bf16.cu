// The Hopper forward kernels on bf16.
#include "slidetile/cuda/forward_sm90_launch.cuh"

namespace slidetile::cuda {

void launch_forward_sm90_bf16(const HopperForwardParams& params, const ForwardLaunch& how) { launch_forward<__nv_bfloat16>(params, how); }

}  // namespace slidetile::cuda
