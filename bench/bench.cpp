#include "bench/bench.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>

#include "bench/backward.h"
#include "bench/cpu_peak.h"
#include "bench/cuda.h"
#include "bench/report.h"
#include "slidetile/attention.h"
#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/window.h"

namespace slidetile::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 3;
constexpr double kQuickSeconds = 90;  // no further rounds after that
constexpr double kPeakSeconds = 0.06;
constexpr int kSampledRows = 24;
constexpr int32_t kCheckedPart = 20;  // one of so many query tiles is run before the timing starts

struct Tensors {
  Tensor q, k, v, out;

  ForwardTensors views() const { return {q.view(), k.view(), v.view(), out.view(), {}}; }
};

Tensors make_tensors(const BenchCase& c) {
  const std::array<int64_t, 4> shape{1, c.heads, c.plan.query.tokens(), c.head_dim};
  Tensors t{Tensor(c.dtype, shape), Tensor(c.dtype, shape), Tensor(c.dtype, shape), Tensor(c.dtype, shape)};
  fill_normal(t.q, 1);
  fill_normal(t.k, 2);
  fill_normal(t.v, 3);
  return t;
}

// One row of the output, in double precision.
std::vector<double> exact_row(const BenchCase& c, const Plan& plan, const Tensors& t, int64_t head, int32_t tile, int32_t slot) {
  const auto at = [&](const Tensor& tensor, int64_t token, int64_t d) -> double {
    const TensorView& view = tensor.view();
    return load_element(view.data, view.dtype, head * view.strides[1] + token * view.strides[2] + d);
  };
  const auto columns = static_cast<size_t>(c.head_dim);
  const int32_t query_slot = plan.query.tile_begin[static_cast<size_t>(tile)] + slot;
  const int64_t query = plan.query.token[static_cast<size_t>(query_slot)];
  std::vector<double> q(columns), out(columns);
  for (size_t d = 0; d < columns; ++d) q[d] = at(t.q, query, static_cast<int64_t>(d)) / std::sqrt(static_cast<double>(c.head_dim));
  double largest = -HUGE_VAL, sum = 0;
  const int32_t row = plan.row(head, tile);
  for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
    const auto key_tile = static_cast<size_t>(plan.key_tile[static_cast<size_t>(entry)]);
    const int32_t first = plan.key.tile_begin[key_tile], size = plan.key.tile_begin[key_tile + 1] - first, mask = plan.mask(entry);
    for (int32_t k = 0; k < size; ++k) {
      if (mask >= 0) {
        const uint64_t word =
            plan.mask_words[static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask)] + int64_t{slot} * ((size + 63) / 64) + k / 64)];
        if ((word >> (k % 64) & 1) == 0) continue;
      }
      const int32_t key_slot = first + k;
      const int64_t token = plan.key.token[static_cast<size_t>(key_slot)];
      double score = 0;
      for (size_t d = 0; d < columns; ++d) score += q[d] * at(t.k, token, static_cast<int64_t>(d));
      const double rescale = score > largest ? std::exp(largest - score) : 1;
      largest = std::max(largest, score);
      const double weight = std::exp(score - largest);
      sum = sum * rescale + weight;
      for (size_t d = 0; d < columns; ++d) out[d] = out[d] * rescale + weight * at(t.v, token, static_cast<int64_t>(d));
    }
  }
  for (double& value : out) value /= sum;
  return out;
}

struct SampledRow {
  int64_t head, token;
  std::vector<double> want;
};

std::vector<SampledRow> sample_rows(const BenchCase& c, const Plan& plan, const Tensors& t) {
  std::vector<std::pair<int64_t, int32_t>> candidates;  // (head, tile) with keys
  for (int64_t head = 0; head < c.heads; ++head) {
    for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
      const int32_t row = plan.row(head, tile);
      if (plan.row_last(row) > plan.row_first(row)) candidates.emplace_back(head, tile);
    }
  }
  std::mt19937_64 random(7);
  std::vector<SampledRow> rows;
  for (int i = 0; i < kSampledRows; ++i) {
    const auto [head, tile] = candidates[random() % candidates.size()];
    const auto slot = static_cast<int32_t>(random() % static_cast<uint64_t>(plan.query.tile_size(tile)));
    const int32_t query_slot = plan.query.tile_begin[static_cast<size_t>(tile)] + slot;
    const int64_t token = plan.query.token[static_cast<size_t>(query_slot)];
    rows.push_back({head, token, exact_row(c, plan, t, head, tile, slot)});
  }
  return rows;
}

double error_of(const std::vector<SampledRow>& rows, const Tensors& t) {
  double error = 0, norm = 0;
  const TensorView& out = t.out.view();
  for (const SampledRow& row : rows) {
    for (size_t d = 0; d < row.want.size(); ++d) {
      const double got =
          load_element(out.data, out.dtype, row.head * out.strides[1] + row.token * out.strides[2] + static_cast<int64_t>(d));
      error += (got - row.want[d]) * (got - row.want[d]);
      norm += row.want[d] * row.want[d];
    }
  }
  return std::sqrt(error / norm);
}

// Peak resident memory of the process since the last reset, in bytes; -1 where the system does not say.
double status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kib = 0;
    if (word == key + ":" && status >> kib) return kib * 1024;
  }
  return -1;
}

// Gives freed memory back first, so that what a run takes is seen again.
bool reset_peak_memory() {
  malloc_trim(0);
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

void poison(const Tensors& t) {
  const TensorView& out = t.out.view();
  for (int64_t i = 0; i < t.out.elements(); ++i) store_element(out.data, out.dtype, i, std::nanf(""));
}

// A kernel on a case, while its samples are collected.
struct Contender {
  std::string kernel, peak_of;
  std::vector<double> part, none, dense, peak;  // seconds, and operations per second
  double error = 0, extra_memory = -1;
};

std::vector<Contender> contenders_of(const BenchCase& c, const BenchOptions& options) {
  std::vector<Contender> found;
  for (const std::string& kernel : kernels_for(c, forward_kernels(DeviceType::kCpu), options.kernel)) {
    found.push_back({.kernel = kernel, .peak_of = kernel});
  }
  return found;
}

// The plans of a case: what is timed, and what is needed to tell the time of the whole from a part.
struct Plans {
  Plan part, none, dense_part, dense_all, checked;
  double pairs = 0, part_pairs = 0, dense_pairs = 0, dense_part_pairs = 0;
};

Plans plans_of(const BenchCase& c) {
  Plans p{.part = part_of(c.plan, c.every),
          .none = part_of(c.plan, 0),
          .dense_part = {},
          .dense_all = {},
          .checked = part_of(c.plan, kCheckedPart)};
  p.pairs = static_cast<double>(visible_pairs(c.plan, c.heads));
  p.part_pairs = static_cast<double>(visible_pairs(p.part, c.heads));
  if (c.dense_every != 0) {
    p.dense_all = full_plan(c.plan.query.grid, c.plan.query.extra);
    p.dense_part = part_of(p.dense_all, c.dense_every);
    p.dense_pairs = static_cast<double>(visible_pairs(p.dense_all, c.heads));
    p.dense_part_pairs = static_cast<double>(visible_pairs(p.dense_part, c.heads));
  }
  return p;
}

// Time of all pairs: packing and writing (the time of a plan without pairs) do not grow with them.
std::vector<double> whole_times(const std::vector<double>& part, const std::vector<double>& none, double factor) {
  if (none.empty()) return part;
  std::vector<double> whole;
  whole.reserve(part.size());
  const double fixed = median_of(none);
  for (const double seconds : part) whole.push_back(fixed + (seconds - fixed) * factor);
  return whole;
}

BenchRow finish_row(const BenchCase& c, const Plans& plans, const Contender& contender) {
  const std::vector<double> whole =
      whole_times(contender.part, c.every == 1 ? std::vector<double>{} : contender.none, plans.pairs / plans.part_pairs);
  BenchRow row{.case_name = c.name,
               .title = c.title,
               .kernel = contender.kernel,
               .dtype = to_string(c.dtype),
               .heads = c.heads,
               .model_heads = c.model_heads,
               .part = plans.part_pairs / plans.pairs,
               .relative_error = contender.error,
               .extra_memory_bytes = contender.extra_memory};
  set_times(row, whole, 4 * plans.pairs * static_cast<double>(c.head_dim), median_of(contender.peak));
  const bool halves = contender.kernel == "cpu.avx512bf16" && c.dtype == DType::kBf16;
  row.packed_bytes_per_head = 2.0 * static_cast<double>(c.plan.key.tokens() * c.head_dim) * (halves ? 2 : 4);
  if (c.dense_every != 0) {
    row.speedup_over_dense = median_of(whole_times(contender.dense, c.dense_every == 1 ? std::vector<double>{} : contender.none,
                                                   plans.dense_pairs / plans.dense_part_pairs)) /
                             median_of(whole);
    row.speedup_limit = plans.dense_pairs / plans.pairs;
  }
  return row;
}

std::vector<BenchRow> run_case(const BenchCase& c, const BenchOptions& options, const Clock::time_point& start) {
  const Tensors tensors = make_tensors(c);
  const Plans plans = plans_of(c);
  std::vector<Contender> contenders = contenders_of(c, options);
  if (contenders.empty()) return {};
  Executor& executor = default_executor();
  const std::vector<SampledRow> checked = sample_rows(c, plans.checked, tensors), rows = sample_rows(c, plans.part, tensors);
  const auto run = [&](const Contender& contender, const Plan& plan) {
    return seconds_of([&] { attention_forward(tensors.views(), plan, {.kernel = contender.kernel}); });
  };
  for (Contender& contender : contenders) {
    poison(tensors);
    const bool watched = reset_peak_memory();
    const double before = status_bytes("VmRSS");
    run(contender, plans.checked);
    if (watched && before > 0) contender.extra_memory = status_bytes("VmHWM") - before;
    contender.error = error_of(checked, tensors);
    require(contender.error <= tolerance(c.dtype), "bench: ", contender.kernel, " on ", c.name, " is wrong: relative error ",
            contender.error, ", expected at most ", tolerance(c.dtype));
  }
  for (int round = 0; round < kRounds; ++round) {
    for (Contender& contender : contenders) {
      contender.peak.push_back(multiply_add_peak(contender.peak_of, executor, kPeakSeconds));
      contender.part.push_back(run(contender, plans.part));
      contender.error = std::max(contender.error, error_of(rows, tensors));
      if (c.every != 1 || c.dense_every > 1) contender.none.push_back(run(contender, plans.none));
      if (c.dense_every != 0) contender.dense.push_back(run(contender, plans.dense_part));
    }
    if (options.extent == Extent::kQuick && std::chrono::duration<double>(Clock::now() - start).count() > kQuickSeconds) break;
  }
  std::vector<BenchRow> results;
  results.reserve(contenders.size());
  for (const Contender& contender : contenders) results.push_back(finish_row(c, plans, contender));
  return results;
}

// Of one pass at least.
void require_kernel(const std::string& name) {
  if (name.empty()) return;
  std::string known;
  for (const auto& list : {forward_kernels(DeviceType::kCpu), backward_kernels(DeviceType::kCpu)}) {
    for (const KernelInfo& kernel : list) {
      if (kernel.name == name && !kernel.reason.empty()) fail(ErrorCode::kUnsupported, "bench: ", name, " can't run here: ", kernel.reason);
      if (kernel.name == name) return;
      if (known.find(kernel.name) == std::string::npos) known += (known.empty() ? "" : ", ") + kernel.name;
    }
  }
  fail(ErrorCode::kInvalidArgument, "bench: no kernel on cpu is named '", name, "', expected one of ", known);
}

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos && line.rfind("model name", 0) == 0) return line.substr(colon + 2);
  }
  return "unknown processor";
}

// While a case runs a terminal says which one.
class CaseLine {
 public:
  CaseLine(const std::string& name, size_t number, size_t of) : shown_(isatty(STDERR_FILENO) != 0) {
    if (shown_) std::fprintf(stderr, "\r\033[K%s, case %zu of %zu", name.c_str(), number, of);
  }
  CaseLine(const CaseLine&) = delete;
  CaseLine& operator=(const CaseLine&) = delete;
  ~CaseLine() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }

 private:
  const bool shown_;
};

void print_case(const std::vector<BenchRow>& rows) {
  const BenchRow& first = rows.front();
  std::printf("\n%s: %s; %lld of %lld heads", first.case_name.c_str(), first.title.c_str(), static_cast<long long>(first.heads),
              static_cast<long long>(first.model_heads));
  if (first.part < 1) std::printf("; %.1f %% of the pairs run, times are of all", first.part * 100);
  std::printf("\n  %-15s %-5s %10s %15s %9s %9s %7s %9s %9s\n", "kernel", "type", "median ms", "min-max ms", "GFLOP/s", "peak", "of peak",
              "rel. err.", "x dense");
  for (const BenchRow& row : rows) {
    char spread[32], speedup[32] = "";
    std::snprintf(spread, sizeof spread, "%.1f-%.1f", row.min_ms, row.max_ms);
    if (row.speedup_over_dense > 0) std::snprintf(speedup, sizeof speedup, "%.2f/%.2f", row.speedup_over_dense, row.speedup_limit);
    std::printf("  %-15s %-5s %10.1f %15s %9.1f %9.1f %6.1f%% %9.1e %9s\n", row.kernel.c_str(), row.dtype.c_str(), row.median_ms, spread,
                row.flops_per_s * 1e-9, row.peak_flops_per_s * 1e-9, row.fraction_of_peak * 100, row.relative_error, speedup);
  }
  std::fflush(stdout);
}

}  // namespace

std::vector<std::string> kernels_for(const BenchCase& c, const std::vector<KernelInfo>& kernels, const std::string& asked) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels) {
    if (!kernel.reason.empty() || (!asked.empty() && kernel.name != asked)) continue;
    // Storage other than bf16 goes through the f32 kernels of plain AVX-512.
    if (kernel.name == "cpu.avx512bf16" && c.dtype != DType::kBf16) continue;
    if (kernel.name == "cpu.portable" && asked.empty() && !c.every_kernel && !names.empty()) continue;
    names.push_back(kernel.name);
  }
  return names;
}

double tolerance(DType dtype) { return dtype == DType::kF32 ? 5e-6 : dtype == DType::kBf16 ? 5e-3 : 1e-3; }

void fill_normal(Tensor& tensor, uint64_t seed) {
  constexpr size_t kTable = 1 << 16;
  std::vector<float> table(kTable);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (float& value : table) value = normal(random);
  uint64_t state = seed * 2 + 1;
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    store_element(tensor.view().data, tensor.view().dtype, i, table[state >> 48]);
  }
}

double seconds_of(const std::function<void()>& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int run_bench(const BenchOptions& options) {
  require(options.device == "cpu" || options.device == "cuda", "bench: device is '", options.device, "', expected cpu or cuda");
  if (!options.json.empty()) require_writable(options.json);
  if (options.device == "cuda") return run_cuda_bench(options);
  const auto start = Clock::now();
  const std::vector<std::string> names = options.cases.empty() ? case_names() : options.cases;
  for (const std::string& name : options.cases) make_case(name, Extent::kQuick);  // throws on an unknown name
  require_kernel(options.kernel);
  const Machine machine{.device = "cpu", .name = processor_name(), .threads = default_executor().workers()};
  std::printf("%s, %d threads, commit %s\n", machine.name.c_str(), machine.threads, built_from());
  std::fflush(stdout);
  std::vector<BenchRow> all;
  for (size_t i = 0; i < names.size(); ++i) {
    std::vector<BenchRow> rows;
    {
      const CaseLine line(names[i], i + 1, names.size());
      const BenchCase c = make_case(names[i], options.extent);
      rows = c.pass == Pass::kBackward ? run_backward_case(c, options) : run_case(c, options, start);
    }
    if (rows.empty()) continue;
    print_case(rows);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  if (!options.json.empty()) write_rows(options.json, machine, all);
  const bool right = std::all_of(all.begin(), all.end(),
                                 [](const BenchRow& row) { return row.relative_error <= tolerance(dtype_from_string(row.dtype)); });
  return right ? 0 : 1;
}

}  // namespace slidetile::bench
