#include "slidetile/window_natten.h"

#include <algorithm>

#include "slidetile/error.h"
#include "slidetile/window_product.h"

namespace slidetile {
namespace {

struct AxisWindow {
  int32_t extent, window, stride, dilation;
  bool causal;
};

/// Keys of query i along an axis that is not dilated.
AxisKeys keys_of(int32_t i, const AxisWindow& axis) {
  const int32_t group = i / axis.stride * axis.stride;
  if (axis.causal) {
    const int32_t leader = std::min(group + axis.stride - 1, axis.extent - 1);
    return {std::max(leader - axis.window + 1, 0), i + 1, 1};
  }
  const int32_t leader = std::min(group + axis.stride / 2, axis.extent - 1);
  const int32_t first = std::clamp(leader - axis.window / 2, 0, axis.extent - axis.window);
  return {first, first + axis.window, 1};
}

AxisRule rule_of(const AxisWindow& axis) {
  AxisRule rule;
  for (int32_t i = 0; i < axis.extent; ++i) {
    const int32_t residue = i % axis.dilation;
    AxisWindow own = axis;  // the tokens of this residue, as an axis of its own
    own.extent = axis.extent / axis.dilation + (residue < axis.extent % axis.dilation ? 1 : 0);
    const AxisKeys keys = keys_of(i / axis.dilation, own);
    rule.push_back({keys.first * axis.dilation + residue, (keys.last - 1) * axis.dilation + residue + 1, axis.dilation});
  }
  return rule;
}

std::array<AxisWindow, 3> axes_of(const NattenWindow& window, const Grid& grid) {
  const std::array<int32_t, 3> extent = grid.canvas().axes(), seen = window.window.axes(), stride = window.stride.axes(),
                               dilation = window.dilation.axes();
  std::array<AxisWindow, 3> axes{};
  for (size_t i = 0; i < 3; ++i) axes[i] = {extent[i], seen[i], stride[i], dilation[i], window.causal[i]};
  return axes;
}

}  // namespace

void require_fits(const NattenWindow& window, const Grid& grid) {
  constexpr const char* kName[] = {"t", "h", "w"};
  const std::array<AxisWindow, 3> axes = axes_of(window, grid);
  for (size_t i = 0; i < 3; ++i) {
    const AxisWindow& axis = axes[i];
    require(axis.window >= 1 && axis.dilation >= 1 && int64_t{axis.window} * axis.dilation <= axis.extent, "natten: on axis ", kName[i],
            " window ", axis.window, " times dilation ", axis.dilation, " must be 1 to the canvas's ", axis.extent, " tokens");
    require(axis.stride >= 1 && axis.stride <= axis.window, "natten: on axis ", kName[i], " stride ", axis.stride,
            " must be 1 to the window's ", axis.window, " tokens");
  }
}

Plan natten_plan(const Grid& grid, std::span<const NattenWindow> windows, ExtraTokens extra) {
  require(!windows.empty(), "natten plan: no windows given, expected one for all heads or one per head");
  for (const NattenWindow& window : windows) require_fits(window, grid);
  WindowClasses classes(windows);
  std::vector<ProductWindow> rules;
  for (const NattenWindow& window : classes.windows) {
    const std::array<AxisWindow, 3> axes = axes_of(window, grid);
    rules.push_back({rule_of(axes[0]), rule_of(axes[1]), rule_of(axes[2])});
  }
  return product_plan(grid, extra, rules, std::move(classes.head_class));
}

}  // namespace slidetile
