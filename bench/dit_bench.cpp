// Times one forward pass of a video transformer with random weights: dense, then with sliding tile attention, and attention's share of it.
//   dit_bench [MODEL] [DEVICE] [DTYPE] [WINDOW] [PASSES]     wan2.1-1.3b cuda bf16 3x3x3 10; MODEL may be `small` (16 x 64 x 64 pixels)
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "slidetile/error.h"
#include "video/attention_op.h"
#include "video/dit.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

struct Problem {
  DitConfig config;
  Dim3 latents, tile;
  int64_t batch, words;
};

Problem problem_of(const std::string& name) {
  if (name != "small") return {released_config(name), {21, 60, 104}, kDefaultTile, 1, 512};  // 480 x 832 x 81 pixels
  const DitConfig config{.patch_size = {1, 4, 4},
                         .num_attention_heads = 4,
                         .attention_head_dim = 64,
                         .in_channels = 3,
                         .out_channels = 3,
                         .text_dim = 256,
                         .ffn_dim = 1024,
                         .num_layers = 8};
  return {config, {16, 64, 64}, {4, 4, 4}, 2, 32};  // with guidance: with and without the prompt
}

struct Times {
  double median_ms, fastest_ms, attention_ms;
};

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

template <typename Pass>
Times time_passes(int passes, const torch::Device& device, const Pass& pass) {
  const auto wait = [&] {
    if (device.is_cuda()) torch::cuda::synchronize();
  };
  for (int i = 0; i < 2; ++i) pass();
  wait();
  std::vector<double> times;
  for (int i = 0; i < passes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    wait();
    times.push_back(milliseconds_since(start));
  }
  std::sort(times.begin(), times.end());
  AttentionTimer timer;
  pass();
  return {times[times.size() / 2], times[0], timer.take_seconds() * 1e3};
}

void run(const std::vector<std::string>& arguments) {
  const auto argument = [&](size_t i, const char* otherwise) {
    return i < arguments.size() ? arguments[i] : std::string(otherwise);
  };
  const Problem problem = problem_of(argument(0, "wan2.1-1.3b"));
  const torch::Device device(argument(1, "cuda"));
  const torch::ScalarType dtype = dtype_from_string(argument(2, "bf16")) == DType::kF32 ? torch::kFloat32 : torch::kBFloat16;
  const Window window = dim3_from_string(argument(3, "3x3x3"));
  const int passes = std::stoi(argument(4, "10"));

  const torch::NoGradGuard no_grad;
  torch::manual_seed(1);
  Dit dit(problem.config, torch::TensorOptions().device(device).dtype(dtype));
  const auto random = [&](torch::IntArrayRef shape) {
    return torch::randn(shape, torch::TensorOptions().device(device).dtype(dtype));
  };
  const Dim3 extent = problem.latents;
  const torch::Tensor latents = random({problem.batch, problem.config.in_channels, extent.t, extent.h, extent.w}),
                      text = random({problem.batch, problem.words, problem.config.text_dim}),
                      timestep = torch::full({problem.batch}, 500.0f, torch::TensorOptions().device(device));
  PlanMaker maker(dit.canvas_of(extent), problem.tile, device);
  std::cout << "canvas " << maker.grid().canvas() << ", tile " << maker.grid().tile() << ", "
            << static_cast<double>(problem.config.parameters()) * 1e-9 << " G parameters, batch " << problem.batch << ", "
            << at::get_num_threads() << " threads\n";
  for (const bool dense : {false, true}) {
    const TokenPlans plans = dense ? maker.dense(problem.config.num_layers) : maker.sliding(window, problem.config.num_layers);
    const Times times = time_passes(passes, device, [&] { dit.forward(latents, timestep, text, plans); });
    std::printf("%-8s density %.4f  step %9.2f ms (fastest %9.2f)  attention %9.2f ms  %s\n",
                dense ? "dense" : argument(3, "3x3x3").c_str(), plans.density(), times.median_ms, times.fastest_ms, times.attention_ms,
                last_attention_kernel());
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, argv + argc});
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "dit_bench: " << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "dit_bench: " << error.what() << std::endl;
  }
  return 2;
}
