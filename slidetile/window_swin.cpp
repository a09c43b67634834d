#include "slidetile/window_swin.h"

#include <algorithm>

#include "slidetile/error.h"
#include "slidetile/window_product.h"

namespace slidetile {
namespace {

AxisRule rule_of(int32_t extent, int32_t window, int32_t shift) {
  require(window > 0 && shift >= 0 && shift < window, "swin plan: window ", window, " with shift ", shift,
          " must be positive, with a shift of 0 to one less");
  if (window >= extent) shift = 0;
  AxisRule rule;
  for (int32_t token = 0; token < extent; ++token) {
    if (token < shift) {
      rule.push_back({0, shift, 1});
      continue;
    }
    const int32_t first = token - (token - shift) % window;
    rule.push_back({first, first + std::min(window, extent - first), 1});
  }
  return rule;
}

}  // namespace

Plan swin_plan(const Grid& grid, const SwinWindow& window, ExtraTokens extra) {
  const Dim3 canvas = grid.canvas(), size = window.window, shift = window.shift;
  const ProductWindow rule{rule_of(canvas.t, size.t, shift.t), rule_of(canvas.h, size.h, shift.h), rule_of(canvas.w, size.w, shift.w)};
  return product_plan(grid, extra, {&rule, 1}, {0});
}

}  // namespace slidetile
