// The portable backward kernel's faster mode for f16.
#include "slidetile/cuda/backward_sm80_atomic.cuh"

namespace slidetile::cuda {

template void launch_backward_sm80_atomic<F16>(const AtomicParams&, const BackwardArgs&);

}  // namespace slidetile::cuda
