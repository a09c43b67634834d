// slidetile bench: the kernels' speed as a fraction of the processor's own, results checked before they are timed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/cases.h"
#include "slidetile/attention.h"

namespace slidetile::bench {

struct BenchOptions {
  Extent extent = Extent::kQuick;
  std::vector<std::string> cases;  // empty: all
  std::string kernel;              // empty: all that can run
  std::string json;                // file to write; empty: none
  std::string device = "cpu";
  double round_seconds = 1.5;  // longest round on a GPU
};

/// The names of those that a case compares: the one that was asked for, or all that can run and have something of their own to show.
std::vector<std::string> kernels_for(const BenchCase& c, const std::vector<KernelInfo>& kernels, const std::string& asked);

/// Normal numbers, out of a table of 2^16.
void fill_normal(Tensor& tensor, uint64_t seed);
/// The relative error from which on a result is wrong.
double tolerance(DType dtype);

/// Seconds that a call takes.
double seconds_of(const std::function<void()>& call);

/// Runs the cases, prints a table on standard output, writes JSON. Returns 0, or 1 where a result is wrong. Throws Error on bad options.
int run_bench(const BenchOptions& options);

}  // namespace slidetile::bench
