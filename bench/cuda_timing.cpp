#include "bench/cuda_timing.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>

#include "cuda_reference.h"
#include "slidetile/error.h"

namespace slidetile::bench {
namespace {

constexpr int kWarm = 25, kTimed = 40, kRounds = 2, kFewest = 2;
constexpr int kProductWarm = 100, kProductTimed = 150;  // shorter ones swing by 10 % as the card's clock follows its power
constexpr double kSecondsToSteady = 4;

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) fail(ErrorCode::kDevice, "bench: ", call, ": ", cudaGetErrorString(status));
}

class Stopwatch {
 public:
  Stopwatch() {
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  /// Seconds a launch.
  double time(const std::function<void()>& launch, int launches) const {
    check(cudaEventRecord(start_), "cudaEventRecord");
    for (int i = 0; i < launches; ++i) launch();
    check(cudaEventRecord(stop_), "cudaEventRecord");
    check(cudaEventSynchronize(stop_), "a timed launch");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
    return static_cast<double>(ms) * 1e-3 / launches;
  }

 private:
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

}  // namespace

std::vector<double> time_steady(const std::function<void()>& launch, const SteadyOptions& options) {
  const Stopwatch stopwatch;
  const double one = stopwatch.time(launch, 2);
  const auto within = [&](int count, double longest) {
    return std::clamp(static_cast<int>(longest / one), kFewest, count);
  };
  std::vector<double> seconds;
  for (int round = 0; round < kRounds; ++round) {
    stopwatch.time(launch, within(kWarm, options.longest_round_seconds / 2));
    seconds.push_back(stopwatch.time(launch, within(kTimed, options.longest_round_seconds)));
  }
  return seconds;
}

struct MatrixProduct::Library {
  static constexpr int kSize = 8192;
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int,
                       int, int, int);
  void* handle = nullptr;
  Gemm gemm = nullptr;
  test::DeviceTensor a, b, c;

  void multiply() const {
    const float one = 1, zero = 0;
    constexpr int kTranspose = 1, kPlain = 0, kBf16 = 14, kCompute32F = 68, kDefault = -1;
    const int status = gemm(handle, kTranspose, kPlain, kSize, kSize, kSize, &one, a.view.data, kBf16, kSize, b.view.data, kBf16, kSize,
                            &zero, c.view.data, kBf16, kSize, kCompute32F, kDefault);
    if (status != 0) fail(ErrorCode::kDevice, "bench: cublasGemmEx gives status ", status);
  }
};

MatrixProduct::MatrixProduct() {
  void* cublas = nullptr;
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    if (cublas == nullptr) cublas = dlopen(name, RTLD_NOW);
  }
  if (cublas == nullptr) return;
  auto library = std::make_unique<Library>();
  const auto create = reinterpret_cast<int (*)(void**)>(dlsym(cublas, "cublasCreate_v2"));
  library->gemm = reinterpret_cast<Library::Gemm>(dlsym(cublas, "cublasGemmEx"));
  if (create == nullptr || library->gemm == nullptr || create(&library->handle) != 0) return;
  for (test::DeviceTensor* tensor : {&library->a, &library->b, &library->c}) {
    *tensor = test::DeviceTensor(DType::kBf16, {1, 1, Library::kSize, Library::kSize}, Layout::kBhsd);
    tensor->fill(7, 1, nullptr);
  }
  library_ = std::move(library);
}

MatrixProduct::~MatrixProduct() = default;

void MatrixProduct::settle() const {
  if (library_ == nullptr) return;
  const Stopwatch stopwatch;
  for (double seconds = 0; seconds < kSecondsToSteady;) {
    seconds += kProductTimed * stopwatch.time([&] { library_->multiply(); }, kProductTimed);
  }
}

double MatrixProduct::flops_per_s() const {
  if (library_ == nullptr) return 0;
  const Stopwatch stopwatch;
  const auto multiply = [&] {
    library_->multiply();
  };
  stopwatch.time(multiply, kProductWarm);
  return 2.0 * Library::kSize * Library::kSize * Library::kSize / stopwatch.time(multiply, kProductTimed);
}

}  // namespace slidetile::bench
