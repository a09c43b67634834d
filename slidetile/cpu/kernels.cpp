// The CPU kernels, best first.
#include "slidetile/cpu/sets.h"
#include "slidetile/kernel.h"

namespace slidetile {

std::span<const ForwardKernel> cpu_forward_kernels() noexcept { return cpu::forward_sets(); }
std::span<const BackwardKernel> cpu_backward_kernels() noexcept { return cpu::backward_sets(); }

}  // namespace slidetile
