// The instruction sets of this build, as kernels, best first on this machine.
#pragma once

#include <span>

#include "slidetile/kernel.h"

namespace slidetile::cpu {

std::span<const ForwardKernel> forward_sets() noexcept;
std::span<const BackwardKernel> backward_sets() noexcept;

}  // namespace slidetile::cpu
