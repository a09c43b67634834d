#include "video/token_plans.h"

#include <algorithm>

#include "slidetile/error.h"

namespace slidetile::video {

Device device_of(const torch::Device& device) {
  if (device.is_cpu()) return {DeviceType::kCpu, 0};
  require(device.is_cuda(), "device: ", device.str(), ", expected cpu or cuda");
  return {DeviceType::kCuda, device.has_index() ? device.index() : 0};
}

LayerPlan::LayerPlan(Plan plan, const torch::Device& device)
    : plan_(std::move(plan)), transposed_(transpose(plan_)), density_(std::min(slidetile::density(plan_), 1.0)) {
  const Device where = device_of(device);
  if (where.type == DeviceType::kCpu) {
    view_ = view_of(plan_);
    transposed_view_ = view_of(transposed_);
  } else {
    uploaded_ = DevicePlan(plan_, transposed_, where);
    view_ = uploaded_.view();
    transposed_view_ = uploaded_.transposed();
  }
}

TokenPlans::TokenPlans(Dim3 canvas, std::vector<std::shared_ptr<const LayerPlan>> layers) : canvas_(canvas), layers_(std::move(layers)) {
  for (const auto& layer : layers_) {
    require(layer->tokens() == canvas_.volume(), "token plans: a layer's plan covers ", layer->tokens(), " tokens, expected ",
            canvas_.volume(), " (canvas ", canvas_, ")");
  }
}

double TokenPlans::density() const noexcept {
  double sum = 0;
  for (const auto& layer : layers_) sum += layer->density();
  return layers_.empty() ? 1 : sum / static_cast<double>(layers_.size());
}

PlanMaker::PlanMaker(Dim3 canvas, Dim3 tile, torch::Device device)
    : grid_(canvas, {std::min(tile.t, canvas.t), std::min(tile.h, canvas.h), std::min(tile.w, canvas.w)}), device_(device) {}

std::shared_ptr<const LayerPlan> PlanMaker::plan_for(std::span<const Window> windows) {
  std::vector<std::array<int32_t, 3>> key;
  const bool all_equal = std::adjacent_find(windows.begin(), windows.end(), std::not_equal_to<>()) == windows.end();
  for (const Window& window : all_equal ? windows.first(std::min<size_t>(windows.size(), 1)) : windows) {
    const Dim3 tiles = grid_.tiles();
    key.push_back({std::min(window.t, tiles.t), std::min(window.h, tiles.h), std::min(window.w, tiles.w)});
  }
  const Dim3 tiles = grid_.tiles();
  if (key.size() == 1 && key[0] == tiles.axes()) key.clear();  // sees everything
  std::shared_ptr<const LayerPlan>& made = made_[key];
  if (!made) {
    std::vector<Window> clipped;
    for (const auto& [t, h, w] : key) clipped.push_back({t, h, w});
    made = std::make_shared<LayerPlan>(clipped.empty() ? full_plan(grid_) : sliding_tile_plan(grid_, clipped), device_);
  }
  return made;
}

TokenPlans PlanMaker::dense(int64_t layers) {
  return TokenPlans(grid_.canvas(), std::vector<std::shared_ptr<const LayerPlan>>(static_cast<size_t>(layers), plan_for({})));
}

TokenPlans PlanMaker::sliding(const Window& window, int64_t layers) {
  return TokenPlans(grid_.canvas(),
                    std::vector<std::shared_ptr<const LayerPlan>>(static_cast<size_t>(layers), plan_for(std::span(&window, 1))));
}

TokenPlans PlanMaker::sliding(std::span<const std::vector<Window>> layers) {
  std::vector<std::shared_ptr<const LayerPlan>> plans;
  for (const std::vector<Window>& windows : layers) plans.push_back(plan_for(windows));
  return TokenPlans(grid_.canvas(), std::move(plans));
}

}  // namespace slidetile::video
