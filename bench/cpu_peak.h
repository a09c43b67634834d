// The processor's own multiply-add rate for each instruction set: registers only, all threads of an executor.
#pragma once

#include <string_view>

#include "slidetile/parallel.h"

namespace slidetile::bench {

/// Operations per second (a multiply-add is two) of the instruction that a CPU kernel is made of: "cpu.avx512bf16" VDPBF16PS, "cpu.avx512"
/// and "cpu.avx2" f32 multiply-adds of 512 and 256 bits, else 128-bit ones of the compiler's baseline. The machine must have the set. Takes
/// about `seconds`.
double multiply_add_peak(std::string_view kernel, Executor& executor, double seconds);

}  // namespace slidetile::bench
