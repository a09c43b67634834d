// The portable backward kernel's faster mode for bf16.
#include "slidetile/cuda/backward_sm80_atomic.cuh"

namespace slidetile::cuda {

template void launch_backward_sm80_atomic<Bf16>(const AtomicParams&, const BackwardArgs&);

}  // namespace slidetile::cuda
