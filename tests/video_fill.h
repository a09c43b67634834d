// Numbers that tools/make_dit_goldens.py and the tests make alike, so that golden files hold results alone.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <string>

namespace slidetile::video {

/// From -1 to 1: 24 bits of a hash of the name and the place.
inline torch::Tensor fill(const std::string& name, torch::IntArrayRef shape) {
  uint32_t seed = 2166136261u;
  for (const char c : name) seed = (seed ^ static_cast<uint8_t>(c)) * 16777619u;
  torch::Tensor tensor = torch::empty(shape, torch::kFloat32);
  auto* values = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    for (int round = 0; round < 2; ++round) x = (x ^ (x >> 15)) * 739982445u;
    x ^= x >> 13;
    values[i] = static_cast<float>(x >> 8) * 0x1p-23f - 1;
  }
  return tensor;
}

/// Weights of the goldens' transformers.
inline void fill_parameters(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  for (auto& item : module.named_parameters()) {
    torch::Tensor& parameter = item.value();
    const bool is_weight = item.key().ends_with("weight");
    torch::Tensor values = fill(item.key(), parameter.sizes());
    if (is_weight && parameter.dim() == 1) {
      values = values * 0.25 + 1;
    } else {
      int64_t inputs = 1;
      for (int64_t axis = 1; axis < parameter.dim(); ++axis) inputs *= parameter.size(axis);
      values = values * (is_weight ? 1.5 / std::sqrt(static_cast<double>(inputs)) : 0.5);
    }
    parameter.copy_(values);
  }
}

inline double relative_error(const torch::Tensor& got, const torch::Tensor& want) {
  const torch::Tensor a = got.detach().to(torch::kCPU, torch::kFloat64), b = want.detach().to(torch::kCPU, torch::kFloat64);
  return ((a - b).norm() / b.norm()).item<double>();
}

}  // namespace slidetile::video
