// The portable forward kernel for bf16.
#include "slidetile/cuda/forward_sm80.cuh"

namespace slidetile::cuda {

template void launch_forward_sm80<Bf16>(ForwardParams&, int64_t, void*);

}  // namespace slidetile::cuda
