// Sliding tile attention on a GPU beside the same run's matrix product, in steady state.
//
//   gpu_bench [--json FILE] [--cases NAME,NAME..] [--kernel NAME] [--seconds OF_A_ROUND]
//
// Steady: the card is first brought to its steady clock by seconds of matrix products; a case is 25 warm launches back to back, then 40
// (fewer for long ones) timed together, twice. Its fraction is of the mean of the matrix products right before and right after it, since
// the card drifts by several percent within a run. Every result is checked against double precision on sampled rows of one head before it
// is timed.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "cuda_reference.h"
#include "slidetile/attention.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"
#include "slidetile/window.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr int kWarm = 25, kTimed = 40, kRounds = 2;
constexpr int kProductWarm = 100, kProductTimed = 150;  // shorter ones swing by 10 % as the card's clock follows its power
constexpr double kSecondsToSteady = 4;
double longest_round_seconds = 1.5;

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) fail(ErrorCode::kDevice, call, ": ", cudaGetErrorString(status));
}

enum class Direction { kForward, kBackward };

// What the kernels whose names start so are to reach, as a fraction of the matrix product.
struct Bar {
  std::string kernel;
  double fraction = 0;
};

struct BenchCase {
  std::string name;
  Direction direction = Direction::kForward;
  Dim3 canvas{30, 48, 80}, tile{6, 8, 8};
  std::vector<Window> windows{{3, 3, 3}};  // none: dense
  int64_t text = 0, heads = 24, head_dim = 128;
  Layout layout = Layout::kBhsd;
  DType dtype = DType::kBf16;
  std::vector<Bar> bars = {};  // the first that fits counts

  double to_reach(const std::string& of_kernel) const {
    for (const Bar& bar : bars) {
      if (of_kernel.starts_with(bar.kernel)) return bar.fraction;
    }
    return 0;
  }
};

// The published strategy's five windows, in tiles of 6x8x8 on 5x6x10, in turn over the heads.
std::vector<Window> five_windows() {
  const Window five[] = {{5, 3, 3}, {3, 3, 5}, {1, 6, 10}, {5, 6, 1}, {5, 1, 10}};
  std::vector<Window> windows;
  for (int head = 0; head < 24; ++head) windows.push_back(five[head % 5]);
  return windows;
}

std::vector<BenchCase> bench_cases() {
  const auto hopper = [](double fraction) {
    return std::vector<Bar>{{"cuda.sm90", fraction}};
  };
  // The faster mode's; the deterministic one is to be within 10 % of it.
  const std::vector<Bar> backward{{"cuda.sm90.atomic", 0.83}, {"cuda.sm90", 0.747}, {"cuda.sm80.atomic", 0.42}, {"cuda.sm80", 0.378}};
  return {
      {.name = "333", .bars = {{"cuda.sm90", 1.03}, {"cuda.sm80", 0.50}}},
      {.name = "333_bshd", .layout = Layout::kBshd, .bars = hopper(1.03)},
      {.name = "555", .windows = {{5, 5, 5}}, .bars = hopper(1.06)},
      {.name = "dense", .windows = {}, .bars = hopper(1.03)},
      {.name = "text256_five_windows", .windows = five_windows(), .text = 256, .bars = hopper(0.98)},
      {.name = "33x45x80_text256", .canvas = {33, 45, 80}, .text = 256, .bars = hopper(0.82)},
      {.name = "21x30x52", .canvas = {21, 30, 52}, .bars = hopper(0.75)},
      {.name = "tile444_555", .tile = {4, 4, 4}, .windows = {{5, 5, 5}}, .bars = hopper(0.70)},
      {.name = "d64", .heads = 48, .head_dim = 64, .bars = hopper(0.75)},
      {.name = "333_f16", .dtype = DType::kF16},
      {.name = "333_backward", .direction = Direction::kBackward, .bars = backward},
      {.name = "d64_backward", .direction = Direction::kBackward, .heads = 48, .head_dim = 64},
      {.name = "333_bshd_backward", .direction = Direction::kBackward, .layout = Layout::kBshd},
  };
}

struct Timing {
  std::vector<double> milliseconds;  // a launch, of each round
  double best() const { return *std::min_element(milliseconds.begin(), milliseconds.end()); }
  double mean() const {
    double sum = 0;
    for (const double ms : milliseconds) sum += ms;
    return sum / static_cast<double>(milliseconds.size());
  }
};

/// Milliseconds of a launch, of so many back to back.
template <typename Launch>
double time_together(const Launch& launch, int launches) {
  cudaEvent_t start = nullptr, stop = nullptr;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  check(cudaEventRecord(start), "cudaEventRecord");
  for (int i = 0; i < launches; ++i) launch();
  check(cudaEventRecord(stop), "cudaEventRecord");
  check(cudaEventSynchronize(stop), "a timed launch");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
  check(cudaEventDestroy(start), "cudaEventDestroy");
  check(cudaEventDestroy(stop), "cudaEventDestroy");
  return static_cast<double>(ms) / launches;
}

template <typename Launch>
Timing time_steady(const Launch& launch) {
  const double one = time_together(launch, 2);
  const auto within = [&](int count, double seconds) {
    return std::clamp(static_cast<int>(seconds * 1000 / one), 2, count);
  };
  Timing timing;
  for (int round = 0; round < kRounds; ++round) {
    time_together(launch, within(kWarm, longest_round_seconds / 2));
    timing.milliseconds.push_back(time_together(launch, within(kTimed, longest_round_seconds)));
  }
  return timing;
}

/// 8192^3 in bf16 by cuBLAS, which is looked for at run time; 0 TFLOP/s without it.
class MatrixProduct {
 public:
  static constexpr int kSize = 8192;

  MatrixProduct() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      library_ = library_ == nullptr ? dlopen(name, RTLD_NOW) : library_;
    }
    if (library_ == nullptr) return;
    const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library_, "cublasCreate_v2"));
    gemm_ = reinterpret_cast<Gemm>(dlsym(library_, "cublasGemmEx"));
    if (create == nullptr || gemm_ == nullptr || create(&handle_) != 0) {
      handle_ = nullptr;
      return;
    }
    for (DeviceTensor* tensor : {&a_, &b_, &c_}) {
      *tensor = DeviceTensor(DType::kBf16, {1, 1, kSize, kSize}, Layout::kBhsd);
      tensor->fill(7, 1, nullptr);
    }
  }
  /// TFLOP/s of a short run; 0 without a library.
  double teraflops() const {
    if (handle_ == nullptr) return 0;
    time_together(*this, kProductWarm);
    return 2.0 * kSize * kSize * kSize / time_together(*this, kProductTimed) * 1e-9;
  }
  /// Runs products for so long that the card's clock settles: a card that comes from idle runs faster at first.
  void settle() const {
    if (handle_ == nullptr) return;
    for (double seconds = 0; seconds < kSecondsToSteady;) seconds += kProductTimed * 1e-3 * time_together(*this, kProductTimed);
  }
  void operator()() const {
    const float one = 1, zero = 0;
    constexpr int kTranspose = 1, kPlain = 0, kBf16 = 14, kCompute32F = 68, kDefault = -1;
    const int status = gemm_(handle_, kTranspose, kPlain, kSize, kSize, kSize, &one, a_.view.data, kBf16, kSize, b_.view.data, kBf16, kSize,
                             &zero, c_.view.data, kBf16, kSize, kCompute32F, kDefault);
    if (status != 0) fail(ErrorCode::kDevice, "cublasGemmEx: ", status);
  }

 private:
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int,
                       int, int, int);
  void *library_ = nullptr, *handle_ = nullptr;
  Gemm gemm_ = nullptr;
  DeviceTensor a_, b_, c_;
};

struct Result {
  std::string name, kernel;
  double ms = 0, spread = 0, teraflops = 0, relative_error = 0, to_reach = 0;
  double product_before = 0, product_after = 0;  // TFLOP/s

  double of_product() const {
    const double product = (product_before + product_after) / 2;
    return product > 0 ? teraflops / product : 0;
  }
  const char* verdict() const { return to_reach == 0 || of_product() == 0 ? "" : of_product() >= to_reach ? "met" : "missed"; }
};

/// Times the launches between two matrix products.
template <typename Launch>
void time_between_products(const MatrixProduct& product, double flops, const Launch& launch, Result& result) {
  result.product_before = product.teraflops();
  const Timing timing = time_steady(launch);
  result.product_after = product.teraflops();
  result.ms = timing.mean();
  result.spread = timing.mean() / timing.best() - 1;
  result.teraflops = flops / result.ms * 1e-9;
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

double relative(const Sums& sums) {
  return sums.wrong > 0 ? std::numeric_limits<double>::infinity() : std::sqrt(sums.error / std::max(sums.norm, 1e-300));
}

Result run_case(const BenchCase& c, const std::string& kernel, const MatrixProduct& product) {
  const Grid grid(c.canvas, c.tile);
  const ExtraTokens extra{0, c.text};
  const Plan plan = c.windows.empty() ? full_plan(grid, extra) : sliding_tile_plan(grid, c.windows, extra);
  const bool backward = c.direction == Direction::kBackward;
  const Device device{DeviceType::kCuda, 0};
  const DevicePlan on_device = backward ? DevicePlan(plan, transpose(plan), device) : DevicePlan(plan, device);
  const std::array<int64_t, 4> shape{1, c.heads, plan.query.tokens(), c.head_dim};
  DeviceTensor q(c.dtype, shape, c.layout), k(c.dtype, shape, c.layout), v(c.dtype, shape, c.layout), out(c.dtype, shape, c.layout),
      lse(DType::kF32, {1, c.heads, shape[2], 1}, Layout::kBhsd);
  q.fill(1, 1, nullptr);
  k.fill(2, 1, nullptr);
  v.fill(3, 1, nullptr);
  const ForwardTensors forward{q.view, k.view, v.view, out.view, lse.view};
  AttentionOptions forward_options{.kernel = backward ? std::string_view() : std::string_view(kernel)};
  const DeviceMemory forward_workspace(forward_workspace_bytes(forward, on_device.view(), forward_options));
  forward_options.workspace = {static_cast<std::byte*>(forward_workspace.data()), static_cast<size_t>(forward_workspace.bytes())};
  attention_forward(forward, on_device.view(), forward_options);

  Result result{.name = c.name, .kernel = kernel, .to_reach = c.to_reach(kernel)};
  const int64_t head = c.heads - 1;
  ReferenceArgs reference{.q = head_of(q.view, head),
                          .k = head_of(k.view, head),
                          .v = head_of(v.view, head),
                          .plan = plan_of(on_device.view(), head),
                          .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
                          .every = 61};
  if (!backward) {
    const ReferenceResult want = reference_forward_on_device(reference);
    result.relative_error = relative(compare_on_device(head_of(out.view, head), want.out.data()));
    time_between_products(
        product, forward_flops(plan, c.heads, c.head_dim), [&] { attention_forward(forward, on_device.view(), forward_options); }, result);
    return result;
  }
  DeviceTensor dout(c.dtype, shape, c.layout), dq(c.dtype, shape, c.layout), dk(c.dtype, shape, c.layout), dv(c.dtype, shape, c.layout);
  dout.fill(4, 1, nullptr);
  const BackwardTensors tensors{q.view, k.view, v.view, out.view, lse.view, dout.view, dq.view, dk.view, dv.view};
  AttentionOptions options{.kernel = kernel};
  const DeviceMemory workspace(backward_workspace_bytes(tensors, on_device.view(), on_device.transposed(), options));
  options.workspace = {static_cast<std::byte*>(workspace.data()), static_cast<size_t>(workspace.bytes())};
  attention_backward(tensors, on_device.view(), on_device.transposed(), options);
  reference.dout = head_of(dout.view, head);
  reference.transposed = plan_of(on_device.transposed(), head);
  reference.out = head_of(out.view, head);
  reference.lse = head_of(lse.view, head);
  const ReferenceResult want = reference_backward_on_device(reference);
  for (const auto& [got, doubles] : {std::pair{&dq, &want.dq}, {&dk, &want.dk}, {&dv, &want.dv}}) {
    result.relative_error = std::max(result.relative_error, relative(compare_on_device(head_of(got->view, head), doubles->data())));
  }
  time_between_products(
      product, backward_flops(plan, c.heads, c.head_dim),
      [&] { attention_backward(tensors, on_device.view(), on_device.transposed(), options); }, result);
  return result;
}

bool listed(const std::string& list, const std::string& name) {
  return list.empty() || ("," + list + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

int main(int argc, char** argv) {
  std::string json, cases, only_kernel;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    if (std::strcmp(argv[i], "--cases") == 0) cases = argv[i + 1];
    if (std::strcmp(argv[i], "--kernel") == 0) only_kernel = argv[i + 1];
    if (std::strcmp(argv[i], "--seconds") == 0) longest_round_seconds = std::atof(argv[i + 1]);
  }
  const auto first_runnable = [&](const std::vector<KernelInfo>& kernels) {
    std::vector<std::string> names;
    for (const KernelInfo& kernel : kernels) {
      if (kernel.reason.empty() && (only_kernel.empty() || only_kernel == kernel.name)) names.push_back(kernel.name);
    }
    return names;
  };
  const auto forward = first_runnable(forward_kernels(DeviceType::kCuda)), backward = first_runnable(backward_kernels(DeviceType::kCuda));
  if (forward.empty() && backward.empty()) {
    std::printf("skipped: no CUDA kernel can run here\n");
    return 77;
  }
  const MatrixProduct product;
  product.settle();
  std::vector<Result> results;
  std::printf("%-22s %-17s %8s %8s %7s %8s %8s %-6s %9s\n", "case", "kernel", "ms", "TFLOP/s", "matmul", "of it", "to reach", "", "error");
  for (const BenchCase& c : bench_cases()) {
    if (!listed(cases, c.name)) continue;
    for (const std::string& kernel : c.direction == Direction::kForward ? forward : backward) {
      Result result;
      try {
        result = run_case(c, kernel, product);
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kUnsupported) continue;
        std::printf("%-24s %-20s %s\n", c.name.c_str(), kernel.c_str(), error.what());
        return 1;
      }
      char bar[16] = "-";
      if (result.to_reach > 0) std::snprintf(bar, sizeof bar, "%.3f", result.to_reach);
      std::printf("%-22s %-17s %8.3f %8.1f %7.1f %8.3f %8s %-6s %9.2e\n", c.name.c_str(), kernel.c_str(), result.ms, result.teraflops,
                  (result.product_before + result.product_after) / 2, result.of_product(), bar, result.verdict(), result.relative_error);
      std::fflush(stdout);
      results.push_back(result);
    }
  }
  std::printf("matmul: TFLOP/s of 8192^3 in bf16, the mean of right before and right after\n");
  if (json.empty()) return 0;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  std::ofstream file(json);
  file << "{\"card\": \"" << properties.name << "\", \"cuda_driver\": " << driver << ",\n \"cases\": [";
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    file << (i == 0 ? "\n" : ",\n") << "  {\"case\": \"" << r.name << "\", \"kernel\": \"" << r.kernel << "\", \"ms\": " << r.ms
         << ", \"spread\": " << r.spread << ", \"tflops\": " << r.teraflops << ", \"matmul_tflops\": [" << r.product_before << ", "
         << r.product_after << "], \"of_matmul\": " << r.of_product() << ", \"to_reach\": " << r.to_reach
         << ", \"relative_error\": " << r.relative_error << "}";
  }
  file << "\n ]}\n";
  return 0;
}
