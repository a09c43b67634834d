// From noise to a sample: flow-match Euler and UniPC as diffusers runs them for Wan, and classifier-free guidance.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

namespace slidetile::video {

enum class SchedulerKind : uint8_t { kEuler, kUniPc };

/// What scheduler_config.json says: FlowMatchEulerDiscreteScheduler (shift) or UniPCMultistepScheduler (order 2, bh2, flow prediction,
/// flow_shift). Keys that ask for anything else throw.
struct SchedulerConfig {
  SchedulerKind kind = SchedulerKind::kEuler;
  int64_t num_train_timesteps = 1000;
  double shift = 1;
};

SchedulerConfig scheduler_config_from_json(const std::string& text, const std::string& name);
std::string to_json(const SchedulerConfig& config);

/// One sampling run: for each step i, feed the model timestep(i) and hand its output to step().
class Scheduler {
 public:
  virtual ~Scheduler() = default;

  int64_t steps() const noexcept { return static_cast<int64_t>(timesteps_.size()); }
  /// 0 to 1000; what the model is told.
  double timestep(int64_t step) const { return timesteps_.at(static_cast<size_t>(step)); }
  /// Share of noise, from 1 to 0: [steps + 1].
  const std::vector<float>& sigmas() const noexcept { return sigmas_; }

  /// The sample of the next step from the model's velocity (noise - data). Computes in f32; to be called steps() times.
  virtual torch::Tensor step(const torch::Tensor& velocity, const torch::Tensor& sample) = 0;

 protected:
  size_t next_index();  // of the step to take; throws after the last

  std::vector<double> timesteps_;
  std::vector<float> sigmas_;

 private:
  size_t index_ = 0;
};

/// Throws unless steps is positive.
std::unique_ptr<Scheduler> make_scheduler(const SchedulerConfig& config, int64_t steps);

/// without + scale (with - without) in f32: both [b, ...].
torch::Tensor guide(const torch::Tensor& with, const torch::Tensor& without, double scale);

/// sigma after the shift: shift s / (1 + (shift - 1) s). Training draws sigmas through it too.
double shifted(double sigma, double shift) noexcept;

}  // namespace slidetile::video
