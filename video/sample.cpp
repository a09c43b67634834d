#include "video/sample.h"

#include <torch/cuda.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>

#include "slidetile/error.h"
#include "video/attention_op.h"
#include "video/coordinates.h"
#include "video/noise.h"

namespace slidetile::video {
namespace {

using Clock = std::chrono::steady_clock;

void check(const SampleRequest& request, const DitConfig& config) {
  require(!request.sentences.empty() && request.sentences.size() == request.seeds.size(), "sample: ", request.sentences.size(),
          " sentences and ", request.seeds.size(), " seeds, expected one seed for each of at least one sentence");
  require(request.steps >= 1 && request.steps <= 1000, "sample: ", request.steps, " steps, expected 1 to 1000");
  require(std::isfinite(request.guidance) && request.guidance >= 0, "sample: guidance ", request.guidance, ", expected 0 or more");
  latent_channels(config);
  const AttentionPattern& pattern = request.pattern;
  require(!pattern.window || !pattern.table, "sample: expected a window or a table of windows, not both");
  require(pattern.dense_steps >= 0 && pattern.dense_steps <= request.steps, "sample: ", pattern.dense_steps, " dense steps of ",
          request.steps);
  if (pattern.table) {
    require(pattern.table->steps() == request.steps, "sample: the strategy is for ", pattern.table->steps(), " steps, expected ",
            request.steps);
    require(pattern.table->layers() == config.num_layers && pattern.table->heads() == config.num_attention_heads,
            "sample: the strategy is for ", pattern.table->layers(), " layers of ", pattern.table->heads(), " heads, the model has ",
            config.num_layers, " of ", config.num_attention_heads);
  }
}

// The plans of each step; equal ones are made once.
class StepPlans {
 public:
  StepPlans(const SampleRequest& request, const Dit& transformer, const torch::Device& device)
      : pattern_(request.pattern),
        layers_(transformer.config().num_layers),
        maker_(transformer.canvas_of(request.extent), request.pattern.tile, device) {
    if (pattern_.window) require_fits(*pattern_.window, maker_.grid());
  }

  TokenPlans of(int64_t step) {
    if (step < pattern_.dense_steps || (!pattern_.window && !pattern_.table)) return maker_.dense(layers_);
    if (pattern_.window) return maker_.sliding(*pattern_.window, layers_);
    std::vector<std::vector<Window>> windows;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      const std::span<const Window> heads = pattern_.table->windows(static_cast<int32_t>(step), static_cast<int32_t>(layer));
      windows.emplace_back(heads.begin(), heads.end());
    }
    return maker_.sliding(windows);
  }

 private:
  const AttentionPattern& pattern_;
  int64_t layers_;
  PlanMaker maker_;
};

// One pass for the whole batch on a GPU; on CPU one for each item, whose activations then stay in the cache.
torch::Tensor forward_all(Dit& transformer, const torch::Tensor& batch, const torch::Tensor& timestep, const torch::Tensor& text,
                          const TokenPlans& plans) {
  if (batch.is_cuda()) return transformer.forward(batch, timestep, text, plans);
  std::vector<torch::Tensor> items;
  for (int64_t i = 0; i < batch.size(0); ++i) {
    items.push_back(transformer.forward(batch.narrow(0, i, 1), timestep.narrow(0, i, 1), text.narrow(0, i, 1), plans));
  }
  return torch::cat(items);
}

void wait_for(const torch::Device& device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

}  // namespace

SampleResult sample(const Model& model, const SampleRequest& request) {
  const torch::NoGradGuard no_gradients;  // not InferenceMode: what the model keeps of this call, training may read
  Dit& transformer = *model.transformer;
  const DitConfig& config = transformer.config();
  check(request, config);
  const torch::Device device = transformer.parameters().front().device();
  const bool guided = request.guidance != 1;
  StepPlans plans(request, transformer, device);
  const std::unique_ptr<Scheduler> scheduler = make_scheduler(model.scheduler, request.steps);

  // The batch is the sentences, then as many empty ones.
  std::vector<std::string> sentences = request.sentences;
  if (guided) sentences.resize(2 * sentences.size());
  const torch::Tensor text = model.text_encoder->forward(TextEncoder::tokens(sentences).to(device));
  std::vector<torch::Tensor> starts;
  for (const uint64_t seed : request.seeds) starts.push_back(noise_of(seed, latent_channels(config), request.extent));
  torch::Tensor latents = torch::stack(starts).to(device);

  SampleResult result;
  result.density = 0;
  wait_for(device);
  AttentionTimer timer;
  for (int64_t step = 0; step < request.steps; ++step) {
    const auto start = Clock::now();
    const TokenPlans step_plans = plans.of(step);
    const torch::Tensor input = model_input(latents.to(transformer.dtype()), config), batch = guided ? torch::cat({input, input}) : input;
    const torch::Tensor timestep = torch::full({batch.size(0)}, scheduler->timestep(step), torch::dtype(torch::kFloat32).device(device));
    torch::Tensor velocity = forward_all(transformer, batch, timestep, text, step_plans);
    if (guided) {
      const std::vector<torch::Tensor> halves = velocity.chunk(2);
      velocity = guide(halves[0], halves[1], request.guidance);
    }
    latents = scheduler->step(velocity, latents);
    result.attention_seconds += timer.take_seconds();  // waits for the device
    wait_for(device);
    result.step_seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    result.density += step_plans.density();
    if (request.on_step) request.on_step(step + 1, request.steps);
  }
  result.density /= static_cast<double>(request.steps);
  result.attention_calls = timer.calls();
  result.kernel = last_attention_kernel();
  result.latents = latents.to(torch::kFloat32);
  return result;
}

torch::Tensor noise_of(uint64_t seed, int64_t channels, Dim3 extent) {
  const torch::Tensor noise = torch::empty({channels, extent.t, extent.h, extent.w}, torch::kFloat32);
  fill_normal({noise.data_ptr<float>(), static_cast<size_t>(noise.numel())}, seed);
  return noise;
}

std::vector<Clip> clips_of(const torch::Tensor& latents) {
  require(latents.dim() == 5 && latents.size(1) == 3, "clips: latents with ", latents.dim(), " axes and ",
          latents.dim() > 1 ? latents.size(1) : 0, " channels, expected [b, 3, t, h, w]");
  const torch::Tensor pixels = latents.detach().to(torch::kCPU, torch::kFloat32).permute({0, 2, 3, 4, 1}).add(1).mul(0.5).contiguous();
  const Dim3 extent{static_cast<int32_t>(latents.size(2)), static_cast<int32_t>(latents.size(3)), static_cast<int32_t>(latents.size(4))};
  const float* data = pixels.data_ptr<float>();
  std::vector<Clip> clips;
  for (int64_t i = 0; i < latents.size(0); ++i, data += extent.volume() * 3) clips.push_back({extent, {data, data + extent.volume() * 3}});
  return clips;
}

torch::Tensor latents_of(const std::vector<Clip>& clips) {
  require(!clips.empty(), "latents: no clips");
  const Dim3 extent = clips.front().extent;
  const torch::Tensor pixels = torch::empty({static_cast<int64_t>(clips.size()), extent.t, extent.h, extent.w, 3}, torch::kFloat32);
  float* data = pixels.data_ptr<float>();
  for (const Clip& clip : clips) {
    require(clip.extent == extent, "latents: clips of ", clip.extent, " and ", extent, ", expected one extent");
    data = std::copy(clip.pixels.begin(), clip.pixels.end(), data);
  }
  return pixels.mul(2).sub(1).permute({0, 4, 1, 2, 3}).contiguous();
}

}  // namespace slidetile::video
