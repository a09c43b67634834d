// The Hopper forward kernels on f16.
#include "slidetile/cuda/forward_sm90_launch.cuh"

namespace slidetile::cuda {

void launch_forward_sm90_f16(const HopperForwardParams& params, const ForwardLaunch& how) { launch_forward<__half>(params, how); }

}  // namespace slidetile::cuda
