#include "video/generate.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <numeric>
#include <string_view>
#include <utility>

#include "slidetile/error.h"
#include "slidetile/kernel.h"
#include "slidetile/parallel.h"
#include "video/sample.h"
#include "video/torch_errors.h"

namespace slidetile::video {
namespace {

// Whether the processor multiplies bf16 itself: then that is faster, else only f32 is.
bool has_bf16_products() {
  for (const ForwardKernel& kernel : cpu_forward_kernels()) {
    if (std::string_view(kernel.name).find("bf16") != std::string_view::npos && kernel.unavailable() == nullptr) return true;
  }
  return false;
}

torch::ScalarType dtype_from_option(const std::string& name, const torch::Device& device) {
  if (name == "auto") return device.is_cuda() || has_bf16_products() ? torch::kBFloat16 : torch::kFloat32;
  if (name == "f32") return torch::kFloat32;
  if (name == "bf16") return torch::kBFloat16;
  require(name == "f16", "generate: dtype '", name, "', expected auto, f32, bf16 or f16");
  return torch::kFloat16;
}

const char* name_of(torch::ScalarType dtype) { return dtype == torch::kFloat32 ? "f32" : dtype == torch::kBFloat16 ? "bf16" : "f16"; }

}  // namespace

const char* why_no_generation() noexcept { return nullptr; }

double Generated::seconds() const noexcept { return std::accumulate(step_seconds.begin(), step_seconds.end(), 0.0); }

struct Generator::State {
  Model model;
};

Generator::Generator(const GeneratorOptions& options) {
  require(options.threads >= 0, "generate: ", options.threads, " threads, expected 1 or more, or 0 for all");
  with_torch_errors("generate", [&] {
    const torch::Device device = device_from_name("generate", options.device);
    const torch::ScalarType dtype = dtype_from_option(options.dtype, device);
    at::set_num_threads(options.threads > 0 ? options.threads : usable_threads());
    state_ = std::make_unique<State>(State{load_model(options.model, device, dtype)});
    const DitConfig& config = state_->model.transformer->config();
    require(config.out_channels == 3, "generate: the model in '", options.model, "' writes ", config.out_channels,
            " channels, expected 3: pixels");
  });
}

Generator::~Generator() = default;

Generated Generator::generate(const GenerateRequest& request) {
  return with_torch_errors("generate", [&] {
    const Dit& transformer = *state_->model.transformer;
    SampleRequest sampling;
    sampling.sentences = {request.sentence};
    sampling.seeds = {request.seed};
    sampling.extent = request.extent;
    sampling.steps = request.steps;
    sampling.guidance = request.guidance;
    sampling.pattern = request.pattern;
    sampling.on_step = request.on_step;
    SampleResult sampled = sample(state_->model, sampling);

    const DitConfig& config = transformer.config();
    Generated result;
    result.clip = std::move(clips_of(sampled.latents).front());
    result.step_seconds = std::move(sampled.step_seconds);
    result.attention_seconds = sampled.attention_seconds;
    result.density = sampled.density;
    result.attention_calls = sampled.attention_calls;
    result.kernel = sampled.kernel;
    result.device = sampled.latents.device().str();
    result.dtype = name_of(transformer.dtype());
    result.layers = config.num_layers, result.heads = config.num_attention_heads, result.head_dim = config.attention_head_dim;
    result.tokens = transformer.canvas_of(request.extent).volume();
    return result;
  });
}

}  // namespace slidetile::video
