#include "video/scheduler.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "slidetile/error.h"
#include "slidetile/json_guard.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 4;
constexpr const char* kEulerClass = "FlowMatchEulerDiscreteScheduler";
constexpr const char* kUniPcClass = "UniPCMultistepScheduler";

// Keys whose other values ask for what is not here. Keys of noise schedules that flow matching does not read are let pass.
const Json& fixed_keys(SchedulerKind kind) {
  static const Json euler = {{"use_dynamic_shifting", false}, {"invert_sigmas", false},          {"shift_terminal", nullptr},
                             {"use_karras_sigmas", false},    {"use_exponential_sigmas", false}, {"use_beta_sigmas", false},
                             {"stochastic_sampling", false}};
  static const Json uni_pc = {{"solver_order", 2},
                              {"prediction_type", "flow_prediction"},
                              {"thresholding", false},
                              {"lower_order_final", true},
                              {"predict_x0", true},
                              {"solver_type", "bh2"},
                              {"disable_corrector", Json::array()},
                              {"solver_p", nullptr},
                              {"use_karras_sigmas", false},
                              {"use_exponential_sigmas", false},
                              {"use_beta_sigmas", false},
                              {"use_flow_sigmas", true},
                              {"final_sigmas_type", "zero"},
                              {"shift_terminal", nullptr},
                              {"use_dynamic_shifting", false},
                              {"rescale_betas_zero_snr", false},
                              {"trained_betas", nullptr}};
  return kind == SchedulerKind::kEuler ? euler : uni_pc;
}

bool is_ignored(SchedulerKind kind, const std::string& key) {
  static const char* const euler[] = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"};
  static const char* const uni_pc[] = {"beta_start",       "beta_end",     "beta_schedule",    "dynamic_thresholding_ratio",
                                       "sample_max_value", "steps_offset", "timestep_spacing", "time_shift_type",
                                       "sigma_min",        "sigma_max"};
  const auto among = [&](const auto& keys) {
    return std::find(std::begin(keys), std::end(keys), key) != std::end(keys);
  };
  return key[0] == '_' || (kind == SchedulerKind::kEuler ? among(euler) : among(uni_pc));
}

// Number i of those that divide the way from 1 to `last` into equal steps, rounded as numpy.linspace does: timesteps are cut to integers.
double along(double last, int64_t steps, int64_t i) {
  return steps == 0 ? 1 : static_cast<double>(i) * ((last - 1) / static_cast<double>(steps)) + 1;
}

class Euler final : public Scheduler {
 public:
  // As diffusers does: the range of sigmas is shifted, and the sigmas spread over it once more.
  Euler(const SchedulerConfig& config, int64_t steps) {
    const double train = static_cast<double>(config.num_train_timesteps);
    const float last = static_cast<float>(shifted(1 / train, config.shift));
    for (int64_t i = 0; i < steps; ++i) {
      sigmas_.push_back(static_cast<float>(shifted(along(static_cast<double>(last), steps - 1, i), config.shift)));
      timesteps_.push_back(static_cast<double>(sigmas_.back() * static_cast<float>(config.num_train_timesteps)));
    }
    sigmas_.push_back(0);
  }

  Tensor step(const Tensor& velocity, const Tensor& sample) override {
    const size_t i = next_index();
    return torch::add(sample.to(torch::kFloat32), velocity.to(torch::kFloat32), sigmas_[i + 1] - sigmas_[i]);
  }
};

// Unified predictor-corrector of second order in the variable lambda = log((1 - sigma) / sigma), on predictions of the data (arXiv
// 2302.04867, B2), the first and the last step of first order. Each step first corrects the sample that the last one predicted, with the
// model's answer there.
class UniPc final : public Scheduler {
 public:
  UniPc(const SchedulerConfig& config, int64_t steps) {
    const double train = static_cast<double>(config.num_train_timesteps), last = 1 / train;
    for (int64_t i = 0; i < steps; ++i) {
      double sigma = shifted(along(last, steps, i), config.shift);
      constexpr double kBelowOne = 1e-6;  // lambda is infinite at 1
      if (std::abs(sigma - 1) < kBelowOne) sigma -= kBelowOne;
      sigmas_.push_back(static_cast<float>(sigma));
      timesteps_.push_back(std::floor(sigma * train));
    }
    sigmas_.push_back(0);
  }

  Tensor step(const Tensor& velocity, const Tensor& sample_in) override {
    const size_t i = next_index();
    Tensor sample = sample_in.to(torch::kFloat32);
    const Tensor data = torch::sub(sample, velocity.to(torch::kFloat32), sigmas_[i]);
    if (i > 0) sample = correct(i, data);
    const int order = i == 0 || i + 1 == timesteps_.size() ? 1 : 2;
    before_ = last_;
    last_ = data;
    last_sample_ = sample;
    last_order_ = order;
    return predict(i, order);
  }

 private:
  double lambda(size_t i) const { return std::log(1.0 - static_cast<double>(sigmas_[i])) - std::log(static_cast<double>(sigmas_[i])); }

  // A step from sigmas_[from] to sigmas_[from + 1]: x keeps `keep` of itself, gets `data` of the data's prediction, and the differences
  // of predictions weigh `slope`.
  struct Weights {
    double keep, data, slope;
    double h;  // of lambda, negated
  };
  Weights weights(size_t from) const {
    const double to = static_cast<double>(sigmas_[from + 1]), alpha = 1 - to;
    const double h = to == 0 ? -INFINITY : lambda(from) - lambda(from + 1), phi = std::expm1(h);
    return {to / static_cast<double>(sigmas_[from]), -alpha * phi, -alpha * phi, h};
  }

  Tensor predict(size_t i, int order) const {
    const Weights w = weights(i);
    Tensor x = last_sample_ * w.keep + last_ * w.data;
    if (order == 2) {
      const double ratio = (lambda(i - 1) - lambda(i)) / -w.h;
      x = x + (before_ - last_) * (0.5 / ratio * w.slope);
    }
    return x;
  }

  // The sample at step i again, from the step before it, now that the data's prediction there is known.
  Tensor correct(size_t i, const Tensor& data) const {
    const Weights w = weights(i - 1);
    const Tensor x = last_sample_ * w.keep + last_ * w.data;
    if (last_order_ == 1) return x + (data - last_) * (0.5 * w.slope);
    const double ratio = (lambda(i - 2) - lambda(i - 1)) / -w.h;
    // Two conditions on the two weights: their sum is b1, and that of ratio and 1 times them b2.
    const double phi_1 = std::expm1(w.h) / w.h - 1, b1 = phi_1 / std::expm1(w.h), phi_2 = phi_1 / w.h - 0.5,
                 b2 = 2 * phi_2 / std::expm1(w.h);
    const double rho_before = (b1 - b2) / (1 - ratio), rho = b1 - rho_before;
    return x + (before_ - last_) * (rho_before / ratio * w.slope) + (data - last_) * (rho * w.slope);
  }

  int last_order_ = 0;
  Tensor last_sample_, last_, before_;  // the corrected sample of the last step, and predictions of the data: its own, the one before
};

}  // namespace

double shifted(double sigma, double shift) noexcept { return shift * sigma / (1 + (shift - 1) * sigma); }

size_t Scheduler::next_index() {
  require(index_ < timesteps_.size(), "scheduler: step ", index_ + 1, ", expected at most ", timesteps_.size());
  return index_++;
}

SchedulerConfig scheduler_config_from_json(const std::string& text, const std::string& name) {
  const Json json = parse_json<Json>(text, name + ": ", kDeepest);
  require(json.is_object(), name, ": ", shown(json), ", expected an object");
  SchedulerConfig config;
  const std::string kind = json.contains("_class_name") && json["_class_name"].is_string() ? json["_class_name"].get<std::string>() : "";
  require(kind == kEulerClass || kind == kUniPcClass, name, ": _class_name is ", in_quotes(kind), ", expected ", kEulerClass, " or ",
          kUniPcClass);
  config.kind = kind == kEulerClass ? SchedulerKind::kEuler : SchedulerKind::kUniPc;
  const Json& fixed = fixed_keys(config.kind);
  const std::string shift_key = config.kind == SchedulerKind::kEuler ? "shift" : "flow_shift";
  if (config.kind == SchedulerKind::kUniPc) {  // diffusers' defaults are those of other models
    for (const char* key : {"prediction_type", "use_flow_sigmas"}) {
      require(json.contains(key), name, ": ", key, " is absent, expected ", fixed[key].dump());
    }
  }
  for (const auto& [key, value] : json.items()) {
    const std::string where = name + ": " + key;
    if (key == shift_key) {
      require(value.is_number() && value.get<double>() > 0 && value.get<double>() <= 1000, where, " is ", shown(value),
              ", expected a number above 0, at most 1000");
      config.shift = value.get<double>();
    } else if (key == "num_train_timesteps") {
      require(value.is_number_integer() && value.get<int64_t>() > 1 && value.get<int64_t>() <= 1000000, where, " is ", shown(value),
              ", expected 2 to 1000000");
      config.num_train_timesteps = value.get<int64_t>();
    } else if (fixed.contains(key)) {
      require(value == fixed[key], where, " is ", shown(value), ", expected ", fixed[key].dump());
    } else {
      require(!key.empty() && is_ignored(config.kind, key), where, " is no key of ", kind);
    }
  }
  return config;
}

std::string to_json(const SchedulerConfig& config) {
  Json json;
  const bool euler = config.kind == SchedulerKind::kEuler;
  json["_class_name"] = euler ? kEulerClass : kUniPcClass;
  json["num_train_timesteps"] = config.num_train_timesteps;
  json[euler ? "shift" : "flow_shift"] = config.shift;
  if (!euler) {
    for (const auto& [key, value] : fixed_keys(config.kind).items()) json[key] = value;
  }
  return json.dump(2) + "\n";
}

std::unique_ptr<Scheduler> make_scheduler(const SchedulerConfig& config, int64_t steps) {
  require(steps > 0 && steps <= config.num_train_timesteps, "scheduler: ", steps, " steps, expected 1 to ", config.num_train_timesteps);
  if (config.kind == SchedulerKind::kEuler) return std::make_unique<Euler>(config, steps);
  return std::make_unique<UniPc>(config, steps);
}

Tensor guide(const Tensor& with, const Tensor& without, double scale) {
  const Tensor base = without.to(torch::kFloat32);
  return torch::add(base, with.to(torch::kFloat32) - base, scale);
}

}  // namespace slidetile::video
