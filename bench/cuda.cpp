#include "bench/cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>

#include "bench/cuda_cases.h"
#include "bench/cuda_timing.h"
#include "bench/report.h"
#include "cuda_reference.h"
#include "slidetile/attention.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"

namespace slidetile::bench {
namespace {

using test::DeviceMemory;
using test::DeviceTensor;

constexpr int64_t kCheckedRows = 61;  // one of so many rows of the last head is compared with double precision

double tolerance(const CudaCase& c) {
  if (c.pass == Pass::kBackward) return 6e-3;
  return c.dtype == DType::kBf16 ? 3e-3 : 4e-4;
}

AttentionOptions options_of(const std::string& kernel, const DeviceMemory& workspace) {
  AttentionOptions options{.kernel = kernel};
  options.workspace = {static_cast<std::byte*>(workspace.data()), static_cast<size_t>(workspace.bytes())};
  return options;
}

TensorView head_of(TensorView view, int64_t head) {
  view.data = static_cast<char*>(view.data) + head * view.strides[1] * size_of(view.dtype);
  view.shape[1] = 1;
  return view;
}

// The plan as one head sees it: head_class is then a single element.
PlanView plan_of(PlanView plan, int64_t head) {
  if (plan.heads > 1) plan.head_class += head;
  plan.heads = 1;
  return plan;
}

double error_of(const TensorView& got, const test::DeviceDoubles& want) {
  const test::Sums sums = test::compare_on_device(got, want.data());
  return sums.wrong > 0 ? std::numeric_limits<double>::infinity() : std::sqrt(sums.error / std::max(sums.norm, 1e-300));
}

Plan make_plan(const CudaCase& c) {
  const Grid grid(c.canvas, c.tile);
  const ExtraTokens extra{0, static_cast<int32_t>(c.text)};
  return c.windows.empty() ? full_plan(grid, extra) : sliding_tile_plan(grid, c.windows, extra);
}

// A case's plan and tensors on the device, and what double precision makes of them.
class Problem {
 public:
  explicit Problem(const CudaCase& c)
      : case_(c),
        plan_(make_plan(c)),
        on_device_(c.pass == Pass::kBackward ? DevicePlan(plan_, transpose(plan_), kDevice) : DevicePlan(plan_, kDevice)),
        checked_head_(c.heads - 1) {
    const std::array<int64_t, 4> shape{1, c.heads, plan_.query.tokens(), c.head_dim};
    const auto make = [&](uint64_t seed) {
      DeviceTensor tensor(c.dtype, shape, c.layout);
      if (seed != 0) tensor.fill(seed, 1, nullptr);
      return tensor;
    };
    q_ = make(1);
    k_ = make(2);
    v_ = make(3);
    out_ = make(0);
    lse_ = DeviceTensor(DType::kF32, {1, c.heads, shape[2], 1}, Layout::kBhsd);
    test::ReferenceArgs args{.q = head_of(q_.view, checked_head_),
                             .k = head_of(k_.view, checked_head_),
                             .v = head_of(v_.view, checked_head_),
                             .plan = plan_of(on_device_.view(), checked_head_),
                             .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
                             .every = kCheckedRows};
    if (c.pass == Pass::kForward) {
      want_ = test::reference_forward_on_device(args);
      return;
    }
    dout_ = make(4);
    dq_ = make(0);
    dk_ = make(0);
    dv_ = make(0);
    const DeviceMemory workspace(forward_workspace_bytes(forward(), on_device_.view()));
    attention_forward(forward(), on_device_.view(), options_of("", workspace));
    args.dout = head_of(dout_.view, checked_head_);
    args.transposed = plan_of(on_device_.transposed(), checked_head_);
    args.out = head_of(out_.view, checked_head_);
    args.lse = head_of(lse_.view, checked_head_);
    want_ = test::reference_backward_on_device(args);
  }

  DeviceMemory workspace(const std::string& kernel) const {
    const AttentionOptions options{.kernel = kernel};
    return DeviceMemory(case_.pass == Pass::kForward
                            ? forward_workspace_bytes(forward(), on_device_.view(), options)
                            : backward_workspace_bytes(backward(), on_device_.view(), on_device_.transposed(), options));
  }
  void launch(const AttentionOptions& options) const {
    if (case_.pass == Pass::kForward) {
      attention_forward(forward(), on_device_.view(), options);
    } else {
      attention_backward(backward(), on_device_.view(), on_device_.transposed(), options);
    }
  }
  void poison_results() const {
    if (case_.pass == Pass::kForward) return out_.poison();
    for (const DeviceTensor* gradient : {&dq_, &dk_, &dv_}) gradient->poison();
  }
  double relative_error() const {
    if (case_.pass == Pass::kForward) return error_of(head_of(out_.view, checked_head_), want_.out);
    return std::max({error_of(head_of(dq_.view, checked_head_), want_.dq), error_of(head_of(dk_.view, checked_head_), want_.dk),
                     error_of(head_of(dv_.view, checked_head_), want_.dv)});
  }
  double flops() const {
    return case_.pass == Pass::kForward ? forward_flops(plan_, case_.heads, case_.head_dim)
                                        : backward_flops(plan_, case_.heads, case_.head_dim);
  }

 private:
  static constexpr Device kDevice{DeviceType::kCuda, 0};

  ForwardTensors forward() const { return {q_.view, k_.view, v_.view, out_.view, lse_.view}; }
  BackwardTensors backward() const { return {q_.view, k_.view, v_.view, out_.view, lse_.view, dout_.view, dq_.view, dk_.view, dv_.view}; }

  const CudaCase& case_;
  const Plan plan_;
  const DevicePlan on_device_;
  const int64_t checked_head_;
  DeviceTensor q_, k_, v_, out_, lse_, dout_, dq_, dk_, dv_;
  test::ReferenceResult want_;
};

// The names of those that can run, of all or of the one that was asked for.
std::vector<std::string> runnable(const std::vector<KernelInfo>& kernels, const std::string& asked, std::string& reasons) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels) {
    if (!asked.empty() && asked != kernel.name) continue;
    if (kernel.reason.empty()) {
      names.push_back(kernel.name);
    } else if (reasons.find(kernel.name + ": ") == std::string::npos) {
      reasons += (reasons.empty() ? "" : "; ") + kernel.name + ": " + kernel.reason;
    }
  }
  return names;
}

Machine this_machine() {
  cudaDeviceProp properties{};
  Machine machine{.device = "cuda"};
  if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess) machine.name = properties.name;
  cudaDriverGetVersion(&machine.cuda_driver);
  return machine;
}

void print_row(const BenchRow& row, bool right) {
  char fraction[16] = "-", wanted[16] = "-";
  if (row.peak_flops_per_s > 0) std::snprintf(fraction, sizeof fraction, "%.3f", row.fraction_of_peak);
  if (row.to_reach > 0) std::snprintf(wanted, sizeof wanted, "%.3f", row.to_reach);
  const bool judged = right && row.to_reach > 0 && row.peak_flops_per_s > 0;
  std::printf("%-22s %-18s %-5s %9.3f %7.1f %8.1f %9s %8s %-6s %10.2e%s\n", row.case_name.c_str(), row.kernel.c_str(), row.dtype.c_str(),
              row.median_ms, row.flops_per_s * 1e-12, row.peak_flops_per_s * 1e-12, fraction, wanted,
              !judged                                ? ""
              : row.fraction_of_peak >= row.to_reach ? "met"
                                                     : "missed",
              row.relative_error, right ? "" : "  WRONG, not timed");
  std::fflush(stdout);
}

}  // namespace

int run_cuda_bench(const BenchOptions& options) {
  const std::vector<CudaCase> cases = cuda_cases_of(options.cases);
  std::string reasons;
  const auto forward = runnable(forward_kernels(DeviceType::kCuda), options.kernel, reasons),
             backward = runnable(backward_kernels(DeviceType::kCuda), options.kernel, reasons);
  if (forward.empty() && backward.empty()) {
    fail(ErrorCode::kUnsupported, "bench: no kernel can run on cuda (",
         reasons.empty() ? "none is named '" + options.kernel + "'" : reasons, ")");
  }
  const Machine machine = this_machine();
  std::printf("%s, commit %s\n", machine.name.c_str(), built_from());
  const SteadyOptions steady{.longest_round_seconds = options.round_seconds};
  const MatrixProduct product;
  product.settle();
  if (product.flops_per_s() == 0) std::printf("no cuBLAS was found at run time: rates without a matrix product beside them\n");
  std::printf("%-22s %-18s %-5s %9s %7s %8s %9s %8s %-6s %10s\n", "case", "kernel", "type", "ms", "TFLOP/s", "matmul", "of matmul",
              "to reach", "", "rel. err.");
  std::vector<BenchRow> rows;
  bool all_right = true;
  for (const CudaCase& c : cases) {
    const std::vector<std::string>& kernels = c.pass == Pass::kForward ? forward : backward;
    if (kernels.empty()) continue;
    const Problem problem(c);
    for (const std::string& kernel : kernels) {
      BenchRow row{.case_name = c.name,
                   .title = title_of(c),
                   .kernel = kernel,
                   .dtype = to_string(c.dtype),
                   .heads = c.heads,
                   .model_heads = c.heads,
                   .to_reach = c.to_reach(kernel)};
      try {
        const DeviceMemory workspace = problem.workspace(kernel);
        const AttentionOptions launch_options = options_of(kernel, workspace);
        problem.poison_results();
        problem.launch(launch_options);
        row.relative_error = problem.relative_error();
        const bool right = row.relative_error <= tolerance(c);
        if (right) {
          const double before = product.flops_per_s();  // right before and right after: the card drifts by several percent in a run
          const std::vector<double> seconds = time_steady([&] { problem.launch(launch_options); }, steady);
          set_times(row, seconds, problem.flops(), (before + product.flops_per_s()) / 2);
        }
        all_right = all_right && right;
        print_row(row, right);
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kUnsupported) continue;  // for example f32 kernels on bf16
        fail(error.code(), "bench: ", kernel, " on ", c.name, ": ", error.what());
      }
      rows.push_back(row);
    }
    if (!options.json.empty()) write_rows(options.json, machine, rows);  // time on a GPU is dear: what is measured is kept
  }
  return all_right ? 0 : 1;
}

}  // namespace slidetile::bench
