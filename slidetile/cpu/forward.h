// The driver of the CPU forward kernels: packs keys, schedules query rows, and leaves the arithmetic to an instruction set's engine.
#pragma once

#include "slidetile/cpu/engine.h"
#include "slidetile/kernel.h"

namespace slidetile::cpu {

void run_forward(const ForwardArgs& args, const EngineSet& set);

}  // namespace slidetile::cpu
