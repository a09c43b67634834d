// The CUDA kernels, best first.
#include "slidetile/cuda/kernels.h"

namespace slidetile {

std::span<const ForwardKernel> cuda_forward_kernels() noexcept {
  static const ForwardKernel kernels[] = {cuda::kForwardSm90, cuda::kForwardSm80, cuda::kForwardF32};
  return kernels;
}

std::span<const BackwardKernel> cuda_backward_kernels() noexcept {
  static const BackwardKernel kernels[] = {cuda::kBackwardSm90, cuda::kBackwardSm80, cuda::kBackwardF32, cuda::kBackwardSm90Atomic,
                                           cuda::kBackwardSm80Atomic};
  return kernels;
}

}  // namespace slidetile
