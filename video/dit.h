// The video diffusion transformer of Wan2.1 (diffusers' WanTransformer3DModel), with self-attention over plans.
#pragma once

#include <torch/nn/module.h>

#include <array>
#include <memory>
#include <string_view>
#include <vector>

#include "video/dit_config.h"
#include "video/token_plans.h"

namespace slidetile::video {

/// Factors on token positions along t, h and w: a model trained on a coarser grid first takes positions scaled to the finer one.
using RopeScale = std::array<double, 3>;
inline constexpr RopeScale kRopeAsIs{1, 1, 1};

struct DitBlock;
struct Linear;

/// Parameters are named as in diffusers' state dict. Weights start at random as PyTorch's layers do; on the device `meta` nothing is
/// allocated.
class Dit : public torch::nn::Module {
 public:
  explicit Dit(const DitConfig& config, const torch::TensorOptions& options = {});

  /// latents [b, in_channels, t, h, w], timestep [b] from 0 to 1000, text [b, words, text_dim] -> [b, out_channels, t, h, w] in the
  /// weights' type. t, h and w are multiples of the patch; plans cover the canvas of tokens, one plan a layer.
  torch::Tensor forward(const torch::Tensor& latents, const torch::Tensor& timestep, const torch::Tensor& text, const TokenPlans& plans,
                        const RopeScale& scale = kRopeAsIs);

  const DitConfig& config() const noexcept { return config_; }
  /// Converts the weights to bf16, f16 or f32, but for those that stay in f32.
  void set_dtype(torch::ScalarType dtype);
  /// The weights' type, that of the result.
  torch::ScalarType dtype() const;
  /// The canvas in tokens of latents of an extent; throws where the patch does not divide it.
  Dim3 canvas_of(Dim3 latents) const;

 private:
  torch::Tensor rotations(const Dim3& canvas, const RopeScale& scale, const torch::Device& device);

  DitConfig config_;
  std::shared_ptr<Linear> patch_embedding_, time_1_, time_2_, time_proj_, text_1_, text_2_, proj_out_;
  std::vector<std::shared_ptr<DitBlock>> blocks_;
  torch::Tensor scale_shift_table_;
  struct Rotations {
    Dim3 canvas;
    RopeScale scale;
    torch::Tensor complex;  // [tokens, 1, head_dim / 2]
  };
  std::vector<Rotations> rotations_;  // of the last calls' canvases
};

/// True for parameters that stay in f32 whatever the others are, as in diffusers: the time embedding, the scale-shift tables and the
/// affine norms of blocks.
bool stays_f32(std::string_view parameter) noexcept;

}  // namespace slidetile::video
