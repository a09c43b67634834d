// The kernels of this back end by name; each is defined beside its launch.
#pragma once

#include "slidetile/kernel.h"

namespace slidetile::cuda {

extern const ForwardKernel kForwardSm90;          // bf16 and f16, Hopper alone
extern const ForwardKernel kForwardSm80;          // bf16 and f16, every device since compute capability 8.0
extern const ForwardKernel kForwardF32;           // f32
extern const BackwardKernel kBackwardSm90;        // bf16 and f16, Hopper alone
extern const BackwardKernel kBackwardSm90Atomic;  // a little faster, its last bits differ from run to run: only by name
extern const BackwardKernel kBackwardSm80;
extern const BackwardKernel kBackwardF32;
extern const BackwardKernel kBackwardSm80Atomic;  // faster, its last bits differ from run to run: only by name

}  // namespace slidetile::cuda
