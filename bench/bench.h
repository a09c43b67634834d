// slidetile bench: the kernels' speed as a fraction of the processor's own, results checked before they are timed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/cases.h"

namespace slidetile::bench {

struct BenchOptions {
  Extent extent = Extent::kQuick;
  std::string case_name;  // empty: all
  std::string json;       // file to write; empty: none
  std::string device = "cpu";
};

/// One kernel on one case.
struct BenchRow {
  std::string case_name, title, kernel, dtype;
  int64_t heads = 0, model_heads = 0;
  double part = 1;  // of the pairs that were run; times are those of all
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int samples = 0;
  double flops = 0, flops_per_s = 0, peak_flops_per_s = 0, fraction_of_peak = 0;
  double relative_error = 0;
  double speedup_over_dense = 0, speedup_limit = 0;  // 0: dense was not timed
  double extra_memory_bytes = -1;                    // beyond inputs and outputs; -1: not known
  double packed_bytes_per_head = 0;                  // K and V of one head as packed
};

/// Seconds that a call takes.
double seconds_of(const std::function<void()>& call);
double median_of(std::vector<double> values);

/// Runs the cases, prints a table on standard output, writes JSON. Returns 0, or 1 where a result is wrong. Throws Error on bad options.
int run_bench(const BenchOptions& options);

}  // namespace slidetile::bench
