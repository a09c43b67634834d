#include "bench/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "slidetile/file.h"

#ifndef SLIDETILE_COMMIT
#define SLIDETILE_COMMIT "unknown"
#endif

namespace slidetile::bench {
namespace {

nlohmann::json to_json(const BenchRow& row) {
  nlohmann::json json{{"case", row.case_name},
                      {"title", row.title},
                      {"kernel", row.kernel},
                      {"dtype", row.dtype},
                      {"heads", row.heads},
                      {"model_heads", row.model_heads},
                      {"part", row.part},
                      {"median_ms", row.median_ms},
                      {"min_ms", row.min_ms},
                      {"max_ms", row.max_ms},
                      {"samples", row.samples},
                      {"flops", row.flops},
                      {"flops_per_s", row.flops_per_s},
                      {"peak_flops_per_s", row.peak_flops_per_s},
                      {"fraction_of_peak", row.fraction_of_peak},
                      {"relative_error", row.relative_error}};
  if (row.to_reach > 0) json["to_reach"] = row.to_reach;
  if (row.packed_bytes_per_head > 0) json["packed_bytes_per_head"] = row.packed_bytes_per_head;
  if (row.speedup_over_dense > 0) {
    json["speedup_over_dense"] = row.speedup_over_dense;
    json["speedup_limit"] = row.speedup_limit;
  }
  if (row.extra_memory_bytes >= 0) json["extra_memory_bytes"] = row.extra_memory_bytes;
  return json;
}

}  // namespace

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n == 0 ? 0 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

void set_times(BenchRow& row, const std::vector<double>& seconds, double flops, double peak_flops_per_s) {
  const double median = median_of(seconds);
  row.median_ms = median * 1e3;
  row.min_ms = *std::min_element(seconds.begin(), seconds.end()) * 1e3;
  row.max_ms = *std::max_element(seconds.begin(), seconds.end()) * 1e3;
  row.samples = static_cast<int>(seconds.size());
  row.flops = flops;
  row.flops_per_s = flops / median;
  row.peak_flops_per_s = peak_flops_per_s;
  row.fraction_of_peak = peak_flops_per_s > 0 ? row.flops_per_s / peak_flops_per_s : 0;
}

const char* built_from() noexcept { return SLIDETILE_COMMIT; }

void write_rows(const std::string& path, const Machine& machine, const std::vector<BenchRow>& rows) {
  nlohmann::json of_machine;
  if (machine.device == "cpu") {
    of_machine = {{"processor", machine.name}, {"threads", machine.threads}};
  } else {
    of_machine = {{"card", machine.name}, {"cuda_driver", machine.cuda_driver}};
  }
  nlohmann::json list = nlohmann::json::array();
  for (const BenchRow& row : rows) list.push_back(to_json(row));
  const nlohmann::json document{{"device", machine.device}, {"machine", of_machine}, {"commit", SLIDETILE_COMMIT}, {"rows", list}};
  write_file(path, document.dump(2) + '\n');
}

}  // namespace slidetile::bench
