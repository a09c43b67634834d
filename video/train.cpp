#include "video/train.h"

#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <sstream>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/parallel.h"
#include "video/checkpoint.h"
#include "video/clip_source.h"
#include "video/coordinates.h"
#include "video/model.h"
#include "video/model_files.h"
#include "video/optimizer.h"
#include "video/torch_errors.h"
#include "video/train_log.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kProbeClips = 32;
constexpr uint64_t kProbeSeed = 20261;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A seed for everything random of one step.
uint64_t seed_of(uint64_t seed, int64_t step) {
  uint64_t mixed = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(step) + 1;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  return mixed ^ (mixed >> 31);
}

// Blocks that start as the identity with open gates, no matter what the time is, and an output of zero.
void set_start_weights(Dit& transformer) {
  const torch::NoGradGuard no_gradients;
  for (auto& parameter : transformer.named_parameters()) {
    const std::string& name = parameter.key();
    for (const char* zero : {"to_out.0.weight", "to_out.0.bias", "ffn.net.2.weight", "ffn.net.2.bias", "proj_out.weight", "proj_out.bias",
                             "time_proj.weight", "time_proj.bias", "scale_shift_table"}) {
      if (name.ends_with(zero)) parameter.value().zero_();
    }
    if (name.starts_with("blocks.") && name.ends_with("scale_shift_table")) {
      for (const int64_t gate : {2, 5}) parameter.value().select(1, gate).fill_(1);
    }
  }
}

Model start_model(const TrainRequest& request, const torch::Device& device) {
  Model model;
  if (!request.from.empty()) {
    model = load_model(request.from, device);
    require(model.transformer->config() == request.config.model, "train: the model in '", request.from,
            "' has another config than the run");
  } else {
    torch::manual_seed(request.config.seed);
    model.transformer = std::make_shared<Dit>(request.config.model);
    model.text_encoder = std::make_shared<TextEncoder>(request.config.model.text_dim);
    set_start_weights(*model.transformer);
    model.transformer->to(device);
    model.text_encoder->to(device);
  }
  model.scheduler.shift = request.config.sampling_shift;
  if (device.is_cuda()) model.transformer->set_dtype(torch::kBFloat16);
  return model;
}

NamedTensors parameters_of(const Model& model) {
  NamedTensors parameters;
  for (auto& parameter : model.transformer->named_parameters())
    parameters.emplace_back("transformer." + parameter.key(), parameter.value());
  for (auto& parameter : model.text_encoder->named_parameters())
    parameters.emplace_back("text_encoder." + parameter.key(), parameter.value());
  return parameters;
}

// uint8 [n, t, h, w, 3] on any device -> f32 [n, 3, t, h, w] from -1 to 1
Tensor latents_of(const Tensor& bytes) { return bytes.to(torch::kFloat32).mul_(2.0 / 255).sub_(1).permute({0, 4, 1, 2, 3}).contiguous(); }

Motion opposite(Motion motion) {
  switch (motion) {
    case Motion::kLeft: return Motion::kRight;
    case Motion::kRight: return Motion::kLeft;
    case Motion::kUp: return Motion::kDown;
    default: return Motion::kUp;
  }
}

// Held-out clips that move straight, with the sentences that say so and those that say the opposite.
struct Probe {
  Probe(const TrainStage& stage, const torch::Device& device) {
    std::vector<std::string> right, reversed;
    std::vector<Tensor> clips;
    const int wanted = std::min(kProbeClips, stage.batch);
    for (uint64_t index = 0; static_cast<int>(right.size()) < wanted; ++index) {
      Scene scene = draw_held_out_scene(kProbeSeed, index);
      if (static_cast<int>(scene.sprites[0].motion) > static_cast<int>(Motion::kDown)) continue;
      const Clip clip = render(scene, stage.extent, kProbeSeed + index);
      clips.push_back(torch::tensor(clip.pixels).view({stage.extent.t, stage.extent.h, stage.extent.w, 3}));
      right.push_back(sentence_of(scene));
      scene.sprites[0].motion = opposite(scene.sprites[0].motion);
      reversed.push_back(sentence_of(scene));
    }
    latents = torch::stack(clips).mul(2).sub(1).permute({0, 4, 1, 2, 3}).contiguous().to(device);
    tokens = TextEncoder::tokens(right).to(device);
    reversed_tokens = TextEncoder::tokens(reversed).to(device);
  }

  Tensor latents, tokens, reversed_tokens;
};

// Files that a run which was killed while it wrote them has left in its folder.
void remove_leftovers(const std::string& folder) {
  std::error_code ignored;  // what stays does no harm
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    for (const char* own : {"checkpoint_", "log.csv", "loss.png", "train.json"}) {
      if (name.starts_with(own) && name.find(".tmp") != std::string::npos) leftovers.push_back(entry.path());
    }
  }
  for (const auto& path : leftovers) std::filesystem::remove(path, ignored);
}

// Both are whole folders at every moment; `to` is absent between the two renames.
void replace_folder(const std::string& from, const std::string& to) {
  std::error_code error;
  const std::string old = to + ".old";
  std::filesystem::remove_all(old, error);
  if (std::filesystem::exists(to, error)) std::filesystem::rename(to, old, error);
  if (!error) std::filesystem::rename(from, to, error);
  if (error) fail(ErrorCode::kIo, to, ": cannot be replaced: ", error.message());
  std::filesystem::remove_all(old, error);
}

std::string folder_for(const TrainRequest& request) {
  require(!request.out.empty(), "train: no folder to write to");
  const std::string settings = request.out + "/train.json";
  std::error_code error;
  const bool holds_run = std::filesystem::exists(settings, error);
  if (request.start == TrainStart::kResume) {
    require(holds_run, "train: '", request.out, "' holds no run to resume: train.json is absent");
    return settings;
  }
  require(!holds_run, "train: '", request.out, "' holds a run already: resume it, or name another folder");
  std::filesystem::create_directories(request.out, error);
  if (error) fail(ErrorCode::kIo, request.out, ": cannot be made: ", error.message());
  return settings;
}

void check(const TrainRequest& request) {
  require(request.threads >= 0, "train: ", request.threads, " threads, expected 1 or more, or 0 for all");
  for (const int64_t every : {request.log_every, request.reversal_every, request.checkpoint_every}) {
    require(every >= 1, "train: a period of ", every, " steps, expected 1 or more");
  }
  require(!request.config.stages.empty(), "train: no stages");
}

class Run {
 public:
  Run(const TrainRequest& request, const torch::Device& device)
      : request_(request),
        config_(request.config),
        device_(device),
        model_(start_model(request, device)),
        optimizer_(parameters_of(model_),
                   {.muon_rate = config_.muon_rate, .adam_rate = config_.adam_rate, .mean_decay = config_.mean_decay}) {
    latent_channels(config_.model);
    for (const TrainStage& stage : config_.stages) {
      const Dim3 canvas = model_.transformer->canvas_of(stage.extent);
      if (stage.window) require_fits(*stage.window, PlanMaker(canvas, stage.tile, torch::kCPU).grid());
      total_ += work_of(stage);
    }
  }

  void resume() {
    const std::string path = newest_checkpoint(request_.out);
    require(!path.empty(), "train: '", request_.out, "' holds no checkpoint to resume from");
    position_ = load_checkpoint(path, optimizer_);
    remove_leftovers(request_.out);
    require(position_.stage <= static_cast<int64_t>(config_.stages.size()), path, ": stage ", position_.stage, " of ",
            config_.stages.size());
    log_ = rows_from_csv(position_.log, path);
  }

  void save() {
    position_.log = csv_of(log_);
    save_checkpoint(request_.out, optimizer_, position_);
    write_file(request_.out + "/log.csv", position_.log);
    const std::string model = request_.out + "/model";
    std::filesystem::remove_all(model + ".new");
    optimizer_.show_mean();
    save_model(model + ".new", model_, torch::kBFloat16);
    optimizer_.show_masters();
    replace_folder(model + ".new", model);
    if (request_.on_checkpoint) request_.on_checkpoint(log_);
  }

  TrainSummary run() {
    const int64_t stages = static_cast<int64_t>(config_.stages.size());
    while (position_.stage < stages) {
      run_stage(config_.stages[static_cast<size_t>(position_.stage)]);
      ++position_.stage;
      position_.stage_step = 0;
      position_.stage_seconds = 0;
      if (position_.stage < stages) save();
    }
    save();
    TrainSummary summary{.log = log_, .seconds = position_.seconds, .model = request_.out + "/model", .parameters = 0, .peak_gpu_gib = 0};
    for (const auto& [name, parameter] : parameters_of(model_)) summary.parameters += parameter.numel();
    if (device_.is_cuda()) {
      const auto stats = at::getDeviceAllocator(device_.type())->getDeviceStats(device_.index());
      summary.peak_gpu_gib = static_cast<double>(stats.allocated_bytes[0].peak) / (1 << 30);
    }
    return summary;
  }

 private:
  static double work_of(const TrainStage& stage) { return stage.steps > 0 ? static_cast<double>(stage.steps) : stage.minutes * 60; }
  double done_in_stage(const TrainStage& stage) const {
    return stage.steps > 0 ? static_cast<double>(position_.stage_step) : position_.stage_seconds;
  }

  // Share of the whole run that is done.
  double progress(const TrainStage& stage) const {
    double done = done_in_stage(stage);
    for (int64_t i = 0; i < position_.stage; ++i) done += work_of(config_.stages[static_cast<size_t>(i)]);
    return std::min(1.0, done / total_);
  }

  double rate_factor(const TrainStage& stage) const {
    const double warm = config_.warmup_steps > 0 ? static_cast<double>(position_.step + 1) / static_cast<double>(config_.warmup_steps) : 1;
    const double left = 1 - progress(stage);
    return std::min({1.0, warm, config_.cooldown > 0 ? left / config_.cooldown : 1});
  }

  void run_stage(const TrainStage& stage) {
    if (done_in_stage(stage) >= work_of(stage)) return;
    const int clip_threads = device_.is_cuda() ? std::max(1, usable_threads() - 2) : 1;
    ClipSource source({.seed = config_.seed, .extent = stage.extent, .clips = stage.batch, .mix = stage.mix, .threads = clip_threads},
                      static_cast<uint64_t>(position_.step));
    PlanMaker plans(model_.transformer->canvas_of(stage.extent), stage.tile, device_);
    const Probe probe(stage, device_);
    const int64_t layers = config_.model.num_layers;
    const TokenPlans dense = plans.dense(layers);
    const TokenPlans sparse = stage.window ? plans.sliding(*stage.window, layers) : dense;
    const RopeScale scale{1, stage.rope_scale, stage.rope_scale};

    const double seconds_before = position_.seconds;
    Clock::time_point start = Clock::now(), last_row = start;
    Tensor sum = torch::zeros({}, torch::TensorOptions().device(device_));
    int64_t summed = 0, last_checkpoint = position_.step;
    const double stage_seconds_before = position_.stage_seconds;
    double launching = 0;
    bool ended = false;
    while (!ended) {
      const double factor = rate_factor(stage);
      const uint64_t step_seed = seed_of(config_.seed, position_.step);
      const bool uses_window = static_cast<double>(step_seed >> 11) * 0x1p-53 < stage.sparse;
      const ClipBatch batch = source.take();
      const Clock::time_point launch = Clock::now();
      sum += train_step(stage, batch, step_seed, uses_window ? sparse : dense);
      optimizer_.step(factor);
      launching += seconds_since(launch);
      ++summed, ++position_.step, ++position_.stage_step;
      position_.stage_seconds = stage_seconds_before + seconds_since(start);
      position_.seconds = seconds_before + seconds_since(start);
      ended = done_in_stage(stage) >= work_of(stage);
      if (position_.step % request_.log_every != 0 && !ended) continue;

      TrainRow row{.step = position_.step,
                   .stage = position_.stage + 1,
                   .loss = sum.item<double>() / static_cast<double>(summed),
                   .seconds = position_.seconds,
                   .reversal = {}};
      if (!std::isfinite(row.loss)) {
        fail(ErrorCode::kDevice, "train: the loss is no number any more at step ", row.step, ": lower the rates and resume");
      }
      const double pace = seconds_since(last_row) / static_cast<double>(summed);
      if (position_.step % request_.reversal_every == 0 || ended) row.reversal = reversal(probe, dense, scale);
      log_.push_back(row);
      if (request_.on_row) {
        const double done = progress(stage), spent = position_.seconds;
        request_.on_row({.row = row,
                         .stages = static_cast<int64_t>(config_.stages.size()),
                         .rate_factor = factor,
                         .clips_per_second = stage.batch / pace,
                         .seconds_left = done > 0 ? spent * (1 - done) / done : 0,
                         .waited = source.seconds_waited(),
                         .host_share = launching / (pace * static_cast<double>(summed))});
      }
      sum.zero_();
      summed = 0;
      launching = 0;
      last_row = Clock::now();
      if (position_.step - last_checkpoint >= request_.checkpoint_every && !ended) {
        save();
        last_checkpoint = position_.step;
        last_row = Clock::now();
      }
    }
  }

  // Gradients of one step; returns its loss.
  Tensor train_step(const TrainStage& stage, const ClipBatch& batch, uint64_t step_seed, const TokenPlans& plans) {
    torch::manual_seed(step_seed);
    const auto clips = static_cast<int64_t>(batch.scenes.size());
    const auto pinned = torch::TensorOptions().pinned_memory(device_.is_cuda());
    const Tensor bytes = torch::empty({clips, stage.extent.t, stage.extent.h, stage.extent.w, 3}, pinned.dtype(torch::kUInt8));
    std::copy(batch.pixels.begin(), batch.pixels.end(), bytes.data_ptr<uint8_t>());
    const Tensor data = latents_of(bytes.to(device_, /*non_blocking=*/true));

    const Tensor drawn = torch::rand({2, clips});  // on the CPU: noise levels spread evenly over the batch, and dropped captions
    const Tensor level = torch::empty({clips}, pinned.dtype(torch::kFloat32));
    const auto chance = drawn.accessor<float, 2>();
    auto levels = level.accessor<float, 1>();
    std::vector<std::string> sentences;
    for (int64_t i = 0; i < clips; ++i) {
      const double even = (static_cast<double>(i) + chance[0][i]) / static_cast<double>(clips);
      levels[i] = static_cast<float>(shifted(std::max(even, 1e-4), stage.shift));
      const bool dropped = chance[1][i] < config_.caption_dropout;
      sentences.push_back(dropped ? "" : sentence_of(batch.scenes[static_cast<size_t>(i)]));
    }
    Tensor tokens = TextEncoder::tokens(sentences);
    if (device_.is_cuda()) tokens = tokens.pin_memory();  // other copies make the host wait for the device
    const Tensor t = level.to(device_, /*non_blocking=*/true);
    const Tensor noise = torch::randn(data.sizes(), data.options()), velocity = noise - data;
    const Tensor noisy = data + velocity * t.view({-1, 1, 1, 1, 1});
    const Tensor found = velocity_of(noisy, t, tokens.to(device_, /*non_blocking=*/true), plans, {1, stage.rope_scale, stage.rope_scale});
    const Tensor loss = torch::mse_loss(found.to(torch::kFloat32), velocity);
    loss.backward();
    return loss.detach();
  }

  Tensor velocity_of(const Tensor& noisy, const Tensor& t, const Tensor& tokens, const TokenPlans& plans, const RopeScale& scale) {
    Dit& transformer = *model_.transformer;
    return transformer.forward(model_input(noisy.to(transformer.dtype()), config_.model), t * 1000, model_.text_encoder->forward(tokens),
                               plans, scale);
  }

  Reversal reversal(const Probe& probe, const TokenPlans& plans, const RopeScale& scale) {
    const torch::NoGradGuard no_gradients;
    torch::manual_seed(kProbeSeed);
    const Tensor noise = torch::randn(probe.latents.sizes(), probe.latents.options()), velocity = noise - probe.latents;
    Reversal grown{};
    for (size_t i = 0; i < kReversalNoise.size(); ++i) {
      const Tensor t = torch::full({probe.latents.size(0)}, kReversalNoise[i], probe.latents.options());
      const Tensor noisy = probe.latents + velocity * kReversalNoise[i];
      const auto loss = [&](const Tensor& tokens) {
        return torch::mse_loss(velocity_of(noisy, t, tokens, plans, scale).to(torch::kFloat32), velocity).item<double>();
      };
      grown[i] = loss(probe.reversed_tokens) / loss(probe.tokens) - 1;
    }
    return grown;
  }

  const TrainRequest& request_;
  const TrainConfig& config_;
  torch::Device device_;
  Model model_;
  Optimizer optimizer_;
  TrainPosition position_;
  std::vector<TrainRow> log_;
  double total_ = 0;  // steps or seconds of all stages
};

}  // namespace

const char* why_no_training() noexcept { return nullptr; }

TrainSummary train(const TrainRequest& asked) {
  check(asked);
  return with_torch_errors("train", [&] {
    const std::string settings = folder_for(asked);
    TrainRequest request = asked;
    const torch::Device device = device_from_name("train", request.device);
    at::set_num_threads(request.threads > 0 ? request.threads : usable_threads());
    if (request.start == TrainStart::kResume) {
      request.config = train_config_from_json(read_text(settings), settings);
      request.from.clear();
    }
    Run run(request, device);
    if (request.start == TrainStart::kResume) {
      run.resume();
    } else {
      run.save();  // before train.json, which says that there is something to resume
      write_file(settings, to_json(request.config));
    }
    return run.run();
  });
}

}  // namespace slidetile::video
