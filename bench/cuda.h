// slidetile bench --device cuda: the GPU kernels beside the same run's matrix product, results checked before they are timed.
#pragma once

#include "bench/bench.h"

namespace slidetile::bench {

/// As run_bench. Throws Error where there is no CUDA device or no back end.
int run_cuda_bench(const BenchOptions& options);

}  // namespace slidetile::bench
