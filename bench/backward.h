// The backward part of slidetile bench.
#pragma once

#include <vector>

#include "bench/bench.h"
#include "bench/report.h"

namespace slidetile::bench {

/// Checks every backward kernel of this machine on sampled rows of dq, dk and dv, then times it. Cases without masks and extra tokens'
/// lengths. Throws Error where a result is wrong.
std::vector<BenchRow> run_backward_case(const BenchCase& c, const BenchOptions& options);

}  // namespace slidetile::bench
