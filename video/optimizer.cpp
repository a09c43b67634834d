#include "video/optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include "slidetile/error.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

constexpr double kAdamEpsilon = 1e-8;

Tensor as_master(const Tensor& parameter) { return parameter.detach().to(torch::kFloat32, /*non_blocking=*/false, /*copy=*/true); }

Tensor gradient_of(const Tensor& parameter, const std::string& name) {
  require(parameter.grad().defined(), "optimizer: ", name, " has no gradient");
  return parameter.grad();
}

}  // namespace

Tensor orthogonalized(const Tensor& matrices) {
  const bool tall = matrices.size(1) > matrices.size(2);
  Tensor x = matrices.is_cuda() ? matrices.to(torch::kBFloat16) : matrices;
  if (tall) x = x.transpose(1, 2);
  x = x / (torch::linalg_vector_norm(x, 2, torch::IntArrayRef{1, 2}, true, torch::kFloat32).to(x.scalar_type()) + 1e-7);
  for (int i = 0; i < 5; ++i) {  // the quintic that grows small singular values fastest and keeps large ones near 1
    const Tensor a = torch::bmm(x, x.transpose(1, 2));
    const Tensor b = torch::baddbmm(a, a, a, -4.7750, 2.0315);
    x = torch::baddbmm(x, b, x, 3.4445, 1);
  }
  if (tall) x = x.transpose(1, 2);
  return x.to(matrices.scalar_type());
}

bool is_muon_parameter(const std::string& name, const Tensor& parameter) {
  return std::string_view(name).find("blocks.") != std::string_view::npos && name.ends_with(".weight") && parameter.dim() == 2;
}

Optimizer::Optimizer(NamedTensors parameters, const OptimizerOptions& options) : options_(options) {
  const torch::NoGradGuard no_gradients;
  std::map<std::vector<int64_t>, size_t> group_of;
  for (auto& [name, parameter] : parameters) {
    if (!is_muon_parameter(name, parameter)) {
      adam_.names.push_back(name);
      adam_.parameters.push_back(parameter);
      adam_.masters.push_back(as_master(parameter));
      adam_.mean.push_back(as_master(parameter));
      adam_.first.push_back(torch::zeros_like(adam_.masters.back()));
      adam_.second.push_back(torch::zeros_like(adam_.masters.back()));
      adam_.counts.push_back(torch::zeros({}, adam_.masters.back().options()));
      continue;
    }
    const auto [place, is_new] = group_of.try_emplace(parameter.sizes().vec(), muon_.size());
    if (is_new) muon_.emplace_back();
    muon_[place->second].names.push_back(name);
    muon_[place->second].parameters.push_back(parameter);
  }
  for (MuonGroup& group : muon_) {
    group.masters = as_master(torch::stack(group.parameters));
    group.mean = group.masters.clone();
    group.momentum = torch::zeros_like(group.masters);
  }
}

void Optimizer::step(double factor) {
  const torch::NoGradGuard no_gradients;
  ++steps_;
  const double decay = std::min(options_.mean_decay, static_cast<double>(steps_) / static_cast<double>(steps_ + 9));
  for (MuonGroup& group : muon_) {
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < group.parameters.size(); ++i) gradients.push_back(gradient_of(group.parameters[i], group.names[i]));
    const Tensor gradient = torch::stack(gradients).to(torch::kFloat32);
    group.momentum.mul_(options_.momentum).add_(gradient);
    const Tensor direction = orthogonalized(gradient.add(group.momentum, options_.momentum));
    const double stretch = std::sqrt(std::max(1.0, static_cast<double>(gradient.size(1)) / static_cast<double>(gradient.size(2))));
    group.masters.add_(direction, -options_.muon_rate * factor * stretch);
    group.mean.lerp_(group.masters, 1 - decay);
    at::_foreach_copy_(group.parameters, group.masters.unbind(0));
    for (Tensor& parameter : group.parameters) parameter.mutable_grad() = Tensor();
  }
  if (adam_.parameters.empty()) return;
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < adam_.parameters.size(); ++i) {
    gradients.push_back(gradient_of(adam_.parameters[i], adam_.names[i]).to(torch::kFloat32));
  }
  at::_foreach_add_(adam_.counts, 1);
  at::_fused_adamw_(adam_.masters, gradients, adam_.first, adam_.second, {}, adam_.counts, options_.adam_rate * factor, options_.beta1,
                    options_.beta2, 0.0, kAdamEpsilon, /*amsgrad=*/false, /*maximize=*/false);
  at::_foreach_lerp_(adam_.mean, adam_.masters, 1 - decay);
  at::_foreach_copy_(adam_.parameters, adam_.masters);
  for (Tensor& parameter : adam_.parameters) parameter.mutable_grad() = Tensor();
}

void Optimizer::show_mean() {
  const torch::NoGradGuard no_gradients;
  for (MuonGroup& group : muon_) at::_foreach_copy_(group.parameters, group.mean.unbind(0));
  if (!adam_.parameters.empty()) at::_foreach_copy_(adam_.parameters, adam_.mean);
}

void Optimizer::show_masters() {
  const torch::NoGradGuard no_gradients;
  for (MuonGroup& group : muon_) at::_foreach_copy_(group.parameters, group.masters.unbind(0));
  if (!adam_.parameters.empty()) at::_foreach_copy_(adam_.parameters, adam_.masters);
}

NamedTensors Optimizer::state() const {
  NamedTensors state;
  for (const MuonGroup& group : muon_) {
    for (size_t i = 0; i < group.names.size(); ++i) {
      const auto place = static_cast<int64_t>(i);
      state.emplace_back("master." + group.names[i], group.masters[place]);
      state.emplace_back("mean." + group.names[i], group.mean[place]);
      state.emplace_back("momentum." + group.names[i], group.momentum[place]);
    }
  }
  for (size_t i = 0; i < adam_.names.size(); ++i) {
    state.emplace_back("master." + adam_.names[i], adam_.masters[i]);
    state.emplace_back("mean." + adam_.names[i], adam_.mean[i]);
    state.emplace_back("first." + adam_.names[i], adam_.first[i]);
    state.emplace_back("second." + adam_.names[i], adam_.second[i]);
  }
  return state;
}

void Optimizer::load(const std::function<Tensor(const std::string& name, const Tensor& like)>& find, int64_t steps) {
  const torch::NoGradGuard no_gradients;
  for (auto& [name, tensor] : state()) tensor.copy_(find(name, tensor));
  for (Tensor& count : adam_.counts) count.fill_(static_cast<double>(steps));
  steps_ = steps;
  show_masters();
}

}  // namespace slidetile::video
