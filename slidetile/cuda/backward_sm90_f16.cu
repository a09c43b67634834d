// The Hopper backward kernels on f16.
#include "slidetile/cuda/backward_sm90_launch.cuh"

namespace slidetile::cuda {

void launch_backward_sm90_f16(const BackwardParams& params, const BackwardLaunch& how) { launch_backward<__half>(params, how); }

}  // namespace slidetile::cuda
