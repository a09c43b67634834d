#include "slidetile/window.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {
namespace {

struct Interval {
  int32_t first, last;  // [first, last)
};

Interval visible_tiles(int32_t query, int32_t window, int32_t tiles) {
  const int32_t extent = std::min(window, tiles), first = std::clamp(query - extent / 2, 0, tiles - extent);
  return {first, first + extent};
}

}  // namespace

void require_fits(const Window& window, const Grid& grid) {
  const Dim3 n = grid.tiles();
  require(window.t > 0 && window.h > 0 && window.w > 0 && window.t <= n.t && window.h <= n.h && window.w <= n.w, "window ", window,
          " must be 1x1x1 to ", n, " tiles (canvas ", grid.canvas(), ", tile ", grid.tile(), ")");
}

Plan sliding_tile_plan(const Grid& grid, std::span<const Window> windows, ExtraTokens extra) {
  const Dim3 n = grid.tiles();
  require(!windows.empty(), "sliding tile plan: no windows given, expected one for all heads or one per head");
  std::vector<Window> classes;
  std::vector<int32_t> head_class;
  for (const Window& window : windows) {
    require(window.t > 0 && window.h > 0 && window.w > 0, "sliding tile plan: window ", window, " must have positive extents");
    const auto known = std::find(classes.begin(), classes.end(), window);
    head_class.push_back(static_cast<int32_t>(known - classes.begin()));
    if (known == classes.end()) classes.push_back(window);
  }
  const Tiling tiling = make_tiling(grid, extra);
  std::vector<int32_t> all(static_cast<size_t>(tiling.tiles()));
  std::iota(all.begin(), all.end(), 0);
  const std::vector<int32_t> extra_tiles(all.begin() + grid.tile_count(), all.end());
  PlanBuilder builder(tiling, tiling);
  std::vector<int32_t> row;
  for (const Window& window : classes) {
    for (int32_t tile = 0; tile < grid.tile_count(); ++tile) {
      const Dim3 at = grid.tile_coordinate(tile);
      const Interval along_t = visible_tiles(at.t, window.t, n.t), along_h = visible_tiles(at.h, window.h, n.h),
                     along_w = visible_tiles(at.w, window.w, n.w);
      row.clear();
      for (int32_t t = along_t.first; t < along_t.last; ++t) {
        for (int32_t h = along_h.first; h < along_h.last; ++h) {
          for (int32_t w = along_w.first; w < along_w.last; ++w) row.push_back(grid.tile_index({t, h, w}));
        }
      }
      row.insert(row.end(), extra_tiles.begin(), extra_tiles.end());
      builder.add_row(row);
    }
    for (size_t i = 0; i < extra_tiles.size(); ++i) builder.add_row(all);
  }
  return builder.finish(std::move(head_class));
}

Plan full_plan(const Grid& grid, ExtraTokens extra) {
  const Tiling tiling = make_tiling(grid, extra);
  std::vector<int32_t> all(static_cast<size_t>(tiling.tiles()));
  std::iota(all.begin(), all.end(), 0);
  PlanBuilder builder(tiling, tiling);
  for (int32_t tile = 0; tile < tiling.tiles(); ++tile) builder.add_row(all);
  return builder.finish({0});
}

}  // namespace slidetile
