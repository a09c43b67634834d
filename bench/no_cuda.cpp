// Linked instead of cuda.cpp where the CUDA back end is not built.
#include "bench/cuda.h"
#include "slidetile/error.h"

namespace slidetile::bench {

int run_cuda_bench(const BenchOptions&) {
  fail(ErrorCode::kUnsupported, "bench: this build has no CUDA back end: CMake found no nvcc 12.4 or later, or SLIDETILE_CUDA is OFF");
}

}  // namespace slidetile::bench
