#include "slidetile/window.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "slidetile/error.h"
#include "slidetile/window_product.h"

namespace slidetile {
namespace {

AxisRule sliding_tile_rule(int32_t extent, int32_t tile, int32_t window) {
  const int32_t tiles = (extent - 1) / tile + 1, seen = std::min(window, tiles);
  AxisRule rule;
  for (int32_t token = 0; token < extent; ++token) {
    const int32_t first = std::clamp(token / tile - seen / 2, 0, tiles - seen);
    rule.push_back({first * tile, static_cast<int32_t>(std::min(int64_t{first + seen} * tile, int64_t{extent})), 1});
  }
  return rule;
}

}  // namespace

void require_fits(const Window& window, const Grid& grid) {
  const Dim3 n = grid.tiles();
  require(window.t > 0 && window.h > 0 && window.w > 0 && window.t <= n.t && window.h <= n.h && window.w <= n.w, "window ", window,
          " must be 1x1x1 to ", n, " tiles (canvas ", grid.canvas(), ", tile ", grid.tile(), ")");
}

Plan sliding_tile_plan(const Grid& grid, std::span<const Window> windows, ExtraTokens extra) {
  require(!windows.empty(), "sliding tile plan: no windows given, expected one for all heads or one per head");
  for (const Window& window : windows) {
    require(window.t > 0 && window.h > 0 && window.w > 0, "sliding tile plan: window ", window, " must have positive extents");
  }
  WindowClasses classes(windows);
  std::vector<ProductWindow> rules;
  const Dim3 canvas = grid.canvas(), tile = grid.tile();
  for (const Window& window : classes.windows) {
    rules.push_back({sliding_tile_rule(canvas.t, tile.t, window.t), sliding_tile_rule(canvas.h, tile.h, window.h),
                     sliding_tile_rule(canvas.w, tile.w, window.w)});
  }
  return product_plan(grid, extra, rules, std::move(classes.head_class));
}

Plan full_plan(const Grid& grid, ExtraTokens extra) {
  const Tiling tiling = make_tiling(grid, extra);
  std::vector<int32_t> all(static_cast<size_t>(tiling.tiles()));
  std::iota(all.begin(), all.end(), 0);
  PlanBuilder builder(tiling, tiling);
  const int32_t row = builder.add_row(all);
  for (int32_t tile = 1; tile < tiling.tiles(); ++tile) builder.repeat_row(row);
  return builder.finish({0});
}

}  // namespace slidetile
