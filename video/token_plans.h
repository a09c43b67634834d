// Which tokens each layer of a transformer attends to: plans with their transposes, on the device where the tensors are.
#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "slidetile/device_plan.h"
#include "slidetile/window.h"

namespace slidetile::video {

/// The device as the core library names it; throws for one that is neither CPU nor CUDA.
Device device_of(const torch::Device& device);

/// A plan and its transpose (which gradients read), uploaded once. Not copied: layers share it by pointer.
class LayerPlan {
 public:
  LayerPlan(Plan plan, const torch::Device& device);

  const PlanView& view() const noexcept { return view_; }
  const PlanView& transposed() const noexcept { return transposed_view_; }
  int64_t tokens() const noexcept { return view_.query.tokens; }
  double density() const noexcept { return density_; }
  /// Floating-point operations of one forward pass of one batch item.
  double forward_flops(int64_t heads, int64_t head_dim) const { return slidetile::forward_flops(plan_, heads, head_dim); }

 private:
  Plan plan_, transposed_;
  DevicePlan uploaded_;
  PlanView view_, transposed_view_;
  double density_ = 1;
};

/// The plans of all layers for one forward pass over a canvas. Cheap to copy.
class TokenPlans {
 public:
  TokenPlans(Dim3 canvas, std::vector<std::shared_ptr<const LayerPlan>> layers);

  const Dim3& canvas() const noexcept { return canvas_; }
  int64_t layers() const noexcept { return static_cast<int64_t>(layers_.size()); }
  const LayerPlan& layer(int64_t index) const { return *layers_.at(static_cast<size_t>(index)); }
  std::shared_ptr<const LayerPlan> share(int64_t index) const { return layers_.at(static_cast<size_t>(index)); }
  /// Visible pairs as a fraction of all, mean over layers. Sparsity is 1 - density.
  double density() const noexcept;

 private:
  Dim3 canvas_;
  std::vector<std::shared_ptr<const LayerPlan>> layers_;
};

/// Makes TokenPlans for one canvas in tokens on one device, and keeps what it made: equal lists of windows share one plan, whichever
/// layer or step they are for.
class PlanMaker {
 public:
  /// The tile is clipped to the canvas.
  PlanMaker(Dim3 canvas, Dim3 tile, torch::Device device);

  const Grid& grid() const noexcept { return grid_; }
  const torch::Device& device() const noexcept { return device_; }

  TokenPlans dense(int64_t layers);
  /// One window, in tiles, for every head of every layer.
  TokenPlans sliding(const Window& window, int64_t layers);
  /// Windows of each layer: one for all its heads, or one per head; an empty list is a dense layer.
  TokenPlans sliding(std::span<const std::vector<Window>> layers);

 private:
  std::shared_ptr<const LayerPlan> plan_for(std::span<const Window> windows);

  Grid grid_;
  torch::Device device_;
  std::map<std::vector<std::array<int32_t, 3>>, std::shared_ptr<const LayerPlan>> made_;
};

}  // namespace slidetile::video
