// The driver of the CPU backward kernels: packs keys, hands out query rows, orders the sums of keys' gradients, and leaves the arithmetic
// to an instruction set's engine.
#pragma once

#include "slidetile/cpu/backward_engine.h"
#include "slidetile/kernel.h"

namespace slidetile::cpu {

void run_backward(const BackwardArgs& args, const BackwardSet& set);

}  // namespace slidetile::cpu
