// The portable backward kernel for f16.
#include "slidetile/cuda/backward_sm80.cuh"

namespace slidetile::cuda {

template void launch_backward_sm80<F16>(const BackwardPasses&, int64_t, void*);
template void launch_backward_repair<F16>(const BackwardPasses&, int64_t, void*);

}  // namespace slidetile::cuda
