// Linked instead of the CUDA back end where it is not built: no kernels.
#include "slidetile/kernel.h"

namespace slidetile {

std::span<const ForwardKernel> cuda_forward_kernels() noexcept { return {}; }
std::span<const BackwardKernel> cuda_backward_kernels() noexcept { return {}; }

}  // namespace slidetile
