// One kernel on one case, and the file that benchmarks write.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slidetile::bench {

struct BenchRow {
  std::string case_name, title, kernel, dtype;
  int64_t heads = 0, model_heads = 0;
  double part = 1;  // of the pairs that were run; times are those of all
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int samples = 0;
  double flops = 0, flops_per_s = 0, peak_flops_per_s = 0, fraction_of_peak = 0;  // peak 0: not known
  double relative_error = 0;
  double to_reach = 0;                               // fraction of the peak that the project asks for; 0: none
  double speedup_over_dense = 0, speedup_limit = 0;  // 0: dense was not timed
  double extra_memory_bytes = -1;                    // beyond inputs and outputs; -1: not known
  double packed_bytes_per_head = 0;                  // K and V of one head as packed; 0: nothing is packed
};

/// Sets times, and rates by the median.
void set_times(BenchRow& row, const std::vector<double>& seconds, double flops, double peak_flops_per_s);

/// What the rows were measured on.
struct Machine {
  std::string device, name;  // "cpu" or "cuda"; the processor or the card
  int threads = 0, cuda_driver = 0;
};

double median_of(std::vector<double> values);
/// The commit that the program was built from.
const char* built_from() noexcept;
void write_rows(const std::string& path, const Machine& machine, const std::vector<BenchRow>& rows);

}  // namespace slidetile::bench
