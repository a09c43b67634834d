// The Hopper backward kernels on bf16.
#include "slidetile/cuda/backward_sm90_launch.cuh"

namespace slidetile::cuda {

void launch_backward_sm90_bf16(const BackwardParams& params, const BackwardLaunch& how) { launch_backward<__nv_bfloat16>(params, how); }

}  // namespace slidetile::cuda
