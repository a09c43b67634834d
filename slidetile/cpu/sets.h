// The instruction sets of this build, as forward kernels, best first on this machine.
#pragma once

#include <span>

#include "slidetile/kernel.h"

namespace slidetile::cpu {

std::span<const ForwardKernel> forward_sets() noexcept;

}  // namespace slidetile::cpu
